"""The course on the path of profile small, and on real reviews."""

import json
import re

import pytest
from conftest import IMDB, finetuning, needs_imdb
from processes import SPEED_OF_LESSON_03, course_without, outputs, said, start

from finetuning.workspace import LESSONS


@pytest.mark.soak
@needs_imdb
def test_real_reviews_through_the_same_lessons(tmp_path):
    """All lessons on a seeded slice of IMDb: leaks found, everything measured, fine-tuned better than chance."""
    done = finetuning("run", "--reviews", IMDB, "--limit", 400, "--name", "imdb", runs=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "imdb" / "results.json").read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert results["run"]["dataset"] == "imdb" and {row["n_test"] for row in rows.values()} == {400}
    assert set(rows) >= {"tfidf", "as_shipped", "deepspeed_zero3", "deepspeed_zero2_offload"}
    assert rows["trainer"]["accuracy_low"] > max(
        rows["majority"]["accuracy_high"], rows["from_scratch"]["accuracy_high"]
    )
    shown = outputs(tmp_path / "imdb" / "notebooks" / "01_prepare_data.ipynb")
    assert re.search(r"train +[1-9]\d* of 400 reviews changed", shown["01-clean-all"])


WIDTHS = {"narrow": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4}, "full": {}}


@pytest.mark.slow
@needs_imdb
@pytest.mark.parametrize("width", ["narrow", pytest.param("full", marks=pytest.mark.soak)])
def test_the_whole_course_as_profile_small_runs_it(width, tmp_path):
    """All lessons on the path of profile small: T5's tokenizer and vocabulary, real reviews, 2 of t5-small's 6 layers.

    80 short reviews; the layers are narrow (and lesson 03 without its charts of speed, and no lesson 05), or as wide as
    t5-small's. The weights are random: the Hub is out of reach.
    """
    import pandas as pd
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    shared = IMDB.parent / "t5-small-tokenizer"
    torch.manual_seed(0)
    shape = T5Config.from_pretrained(shared, num_layers=2, num_decoder_layers=2, **WIDTHS[width])
    assert shape.vocab_size == 32128 and (width == "narrow" or shape.d_model == 512)
    model = T5ForConditionalGeneration(shape)
    if width == "narrow":  # else it would not learn eight reviews by heart in lesson 03's few steps
        model.decoder.final_layer_norm.weight.data.fill_(4)
    model.save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(shared).save_pretrained(tmp_path / "t5")
    (tmp_path / "imdb").mkdir()
    for split in ("train", "test"):
        reviews = pd.read_parquet(IMDB / f"{split}.parquet")
        short = reviews[reviews["text"].str.split().str.len() < 70]
        chosen = pd.concat([short[short["label"] == label].head(20) for label in (0, 1)])
        chosen.to_parquet(tmp_path / "imdb" / f"{split}.parquet", index=False)
    course = course_without(tmp_path / "course", *(SPEED_OF_LESSON_03 if width == "narrow" else ()))
    arguments = ("--profile", "small", "--base-model", tmp_path / "t5", "--reviews", tmp_path / "imdb")
    if width == "narrow":  # lesson 05 starts processes again and again, as it does on profile pocket
        arguments += ("--lessons", ",".join(lesson[:2] for lesson in LESSONS if lesson != "05_train_on_a_cluster"))
    assert start(tmp_path, *arguments, cwd=course).wait(timeout=3600) == 0, said(tmp_path)
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert results["run"]["model"] == "t5" and results["run"]["profile"] == "small"
    rows = {row["method"]: row for row in results["rows"]}
    assert set(rows) >= {"majority", "tfidf", "as_shipped", "trainer", "from_scratch", "deepspeed_zero3"}
    assert rows["trainer"]["parameters"] == rows["deepspeed_zero3"]["parameters"] == model.num_parameters()
    assert all(row["n_test"] == 40 for row in rows.values())
