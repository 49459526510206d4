"""Shared by the tests: a tiny T5 made on the fly, runs in a temporary folder, one real run of the whole course."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMDB = ROOT.parent / "shared" / "data" / "imdb"
needs_imdb = pytest.mark.skipif(
    not IMDB.is_dir(), reason="real IMDb reviews are not beside this clone (../shared/data/imdb)"
)

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # no test may reach the network; those about the Hub use a closed port of this machine
)


def finetuning(*arguments, runs, **environment):
    """``python -m finetuning …`` with its runs in a folder of the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "finetuning", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "FINETUNING_RUNS": str(runs), **environment},
        capture_output=True,
        text=True,
        timeout=3600,  # a guard against hanging; a slow processor takes a third of it for the whole course
    )


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A ``runs`` folder of the test's own."""
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a T5 of some thousand random weights and pocket T5's tokenizer."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from finetuning.profiles import POCKET_T5

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(POCKET_T5)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=1, num_decoder_layers=1,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pocket_run(tmp_path_factory):
    """The whole course on the shipped defaults, executed once: (finished process, the run's folder)."""
    runs = tmp_path_factory.mktemp("pocket") / "runs"
    return finetuning("run", runs=runs), runs / "pocket"
