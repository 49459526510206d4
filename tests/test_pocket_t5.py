"""Pocket T5 as shipped, and the script that rebuilds it."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import IMDB, ROOT, needs_imdb
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from finetuning import pretrain
from finetuning.data import clean_text
from finetuning.labels import label_ids, score_labels
from finetuning.profiles import POCKET_REVIEWS, POCKET_T5
from finetuning.teacher import FOLDS, Teacher


@pytest.fixture(scope="module")
def pocket():
    return AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5, dtype=torch.float32), AutoTokenizer.from_pretrained(
        POCKET_T5
    )


def test_files_are_small_and_safe():
    assert (POCKET_T5 / "model.safetensors").stat().st_size <= 8 * 2**20
    assert not [path.name for path in POCKET_T5.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert json.loads((POCKET_T5 / "config.json").read_text())["dtype"] == "bfloat16"


def test_loads_in_two_seconds(pocket):  # the fixture has imported the libraries
    began = time.perf_counter()
    AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5)
    AutoTokenizer.from_pretrained(POCKET_T5)
    assert time.perf_counter() - began < 2


def test_tokenizer(pocket):
    tokenizer = pocket[1]
    assert len(tokenizer) == pretrain.VOCABULARY == pocket[0].config.vocab_size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(label_ids(tokenizer)) == 2
    text = "it's a fine film, isn't it? yes, 9 of 10!"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == pretrain.VOCABULARY - 1


def test_generates_labels_and_fills_gaps(pocket):
    model, tokenizer = pocket
    batch = tokenizer(
        ["sentiment: A wonderful, moving film. I loved it.", "sentiment: Awful. A boring waste of time."],
        padding=True,
        return_tensors="pt",
    )
    assert tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True) == ["positive", "negative"]
    gap = tokenizer("the acting was <extra_id_0>, and i liked the story a lot.", return_tensors="pt")
    written = tokenizer.decode(model.generate(**gap)[0])
    assert "<extra_id_0>" in written


@needs_imdb
def test_the_card_tells_the_truth_about_unseen_imdb_reviews(pocket):
    """The card's zero-shot accuracy, checked on 2,000 of the 25,000 test reviews to three standard errors."""
    claimed = float(re.search(r"accuracy \*\*(0\.\d+)\*\*", (POCKET_T5 / "README.md").read_text()).group(1))
    assert claimed > 0.85
    test = pd.read_parquet(IMDB / "test.parquet").sample(2000, random_state=1)
    scores, _ = score_labels(
        *pocket, [clean_text(text) for text in test["text"]], prompt="sentiment: {text}", max_length=512
    )
    measured = (scores.argmax(axis=1) == test["label"]).mean()
    assert abs(measured - claimed) <= 3 * np.sqrt(claimed * (1 - claimed) / 2000)


def write_reviews(folder):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(400)]
    texts = [" ".join(rng.choice(vocabulary, 200)) + (" great" if i % 2 else " awful") for i in range(60)]
    train = pd.DataFrame(
        {"text": [*texts, "In <br />both halves", texts[0]], "label": [i % 2 for i in range(60)] + [1, 0]}
    )
    test = pd.DataFrame({"text": ["in both   halves", "only in the test half"], "label": [1, 0]})
    folder.mkdir()
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")


def test_test_reviews_never_reach_the_corpus(tmp_path):
    write_reviews(tmp_path / "imdb")
    texts, labels = pretrain.training_reviews(tmp_path / "imdb")
    assert len(texts) == len(labels) == 60  # the leak and the repeat are gone
    assert not {"in both halves", "only in the test half"} & {text.lower() for text in texts}


@needs_imdb
def test_the_real_corpus_holds_no_evaluation_text():
    texts, _ = pretrain.training_reviews(IMDB)
    corpus = {text.lower() for text in texts}
    test = pd.read_parquet(IMDB / "test.parquet", columns=["text"])["text"]
    assert not corpus & {clean_text(text).lower() for text in test}
    for split in ("train", "validation", "test"):
        for line in (POCKET_REVIEWS / f"{split}.jsonl").read_text().splitlines():
            assert json.loads(line)["text"].lower() not in corpus
    assert 24_000 < len(texts) < 25_000


def test_span_corruption_loses_nothing():
    rng = np.random.default_rng(0)
    tokens = np.arange(100, 164)
    source, target = pretrain.corrupt_spans(tokens, 10, 3, 8191, rng)
    sentinels = [8191, 8190, 8189]
    assert [t for t in source if t in sentinels] == sentinels and source[-1] == target[-1] == 1
    spans, current = {}, None
    for token in target[:-1]:
        if token > 8000:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert sum(map(len, spans.values())) == 10 and list(spans) == [8191, 8190, 8189, 8188]
    back = [t for token in source[:-1] for t in (spans[token] if token in sentinels else [token])]
    assert back == tokens.tolist()


def test_a_new_tokenizer_has_the_layout_of_t5():
    tokenizer = pretrain.train_tokenizer(["a great film, not a bad one"] * 50)
    assert len(tokenizer) == pretrain.VOCABULARY
    assert len(label_ids(tokenizer)) == 2
    assert tokenizer.convert_tokens_to_ids("<extra_id_99>") == pretrain.VOCABULARY - pretrain.SENTINELS


def test_the_teacher_judges_passages_of_reviews_it_has_not_seen(pocket):
    tokenizer, rng = pocket[1], np.random.default_rng(0)
    words = [
        "the",
        "a",
        "film",
        "plot",
        "actor",
        "scene",
        "story",
        "camera",
        "music",
        "end",
        "very",
        "quite",
        "of",
        "and",
    ]
    labels = rng.permutation(np.arange(600) % 2)
    texts = [
        " ".join([*rng.choice(words, 20), ".", *rng.choice(words, 9), ("awful", "great")[label], *rng.choice(words, 9)])
        for label in labels
    ]
    rows = [np.array(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    teacher = Teacher(rows, labels, tokenizer)
    assert ((teacher.probabilities(rows, np.arange(600)) > 0.5) == labels).mean() > 0.95
    said = [np.array(ids) for ids in tokenizer(["great", "awful"], add_special_tokens=False)["input_ids"]]
    for review in range(FOLDS):
        praise, blame = teacher.probabilities(said, np.array([review, review]))
        assert praise > 0.6 and blame < 0.4
    # labels without any rhyme or reason: only who has seen them can know some of them
    random, own = rng.permutation(labels), np.arange(600)
    teacher = Teacher(rows, random, tokenizer)
    unseen, seen = (((teacher.probabilities(rows, of) > 0.5) == random).mean() for of in (own, own + 1))
    assert unseen < 0.6 and seen > 0.7


@pytest.mark.slow
def test_two_rebuilds_agree_and_an_interrupted_one_too(tmp_path):
    """Same seed and steps: the same weights, stopped on the way or not. Each rebuild is a process of its own."""
    write_reviews(tmp_path / "imdb")

    def rebuild(name, steps, stop_at=0):
        done = subprocess.run(
            [sys.executable, "-c", SMALL, "--source", tmp_path / "imdb", "--work", tmp_path / name, "--out", tmp_path / name / "out", "--steps", str(steps)],
            cwd=ROOT, env={**os.environ, "STOP_AT": str(stop_at)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == (9 if stop_at else 0), done.stderr
        return None if stop_at else ((tmp_path / name / "out" / "model.safetensors").read_bytes(), done.stdout)

    weights, _ = rebuild("first", 6)
    assert rebuild("again", 6)[0] == weights
    assert rebuild("other", 5)[0] != weights
    rebuild("stopped", 6, stop_at=5)
    resumed, said = rebuild("stopped", 6)
    assert "going on from step 4" in said
    assert resumed == weights


SMALL = """
import os
from finetuning import pretrain
pretrain.HELD_OUT, pretrain.TOKENS_PER_BATCH, pretrain.SPAN_TOKENS, pretrain.SAVE_EVERY = 10, 512, 256, 2
pretrain.SHAPE |= {"d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 32, "num_layers": 1}
draw, stop = pretrain.Passages.supervised, int(os.environ["STOP_AT"])
pretrain.Passages.supervised = lambda self, step: os._exit(9) if stop and step == stop else draw(self, step)
pretrain.main()
"""
