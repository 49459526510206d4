"""The Hub path for real: the libraries' own downloads, from a stand-in for the Hub on this machine."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import IMDB, ROOT
from hub import Hub

from finetuning.profiles import POCKET_REVIEWS, POCKET_T5, PROFILES

SMALL = PROFILES["small"]
TOKENIZER = ROOT.parent / "shared" / "data" / "t5-small-tokenizer"  # T5's own; pocket T5's where it is not there
SPLITS = {"train": 60, "test": 40, "unsupervised": 10}
CARD = """---
configs:
- config_name: plain_text
  data_files:
  - {split: train, path: plain_text/train-*}
  - {split: test, path: plain_text/test-*}
  - {split: unsupervised, path: plain_text/unsupervised-*}
  default: true
dataset_info:
  config_name: plain_text
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': neg, '1': pos}}}
---
"""
# One process that loads what it is told and answers in a line: the imports are paid once.
WORKER = """
import json, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.1))  # the libraries wait between their tries, up to eight seconds
from finetuning.data import load_reviews
from finetuning.errors import CourseError
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import choose
for line in sys.stdin:
    asked = json.loads(line)
    settings = choose("small", reviews=asked.get("reviews", ""), base_model=asked.get("model", ""))
    try:
        if asked["load"] == "reviews":
            splits = load_reviews(settings.reviews, asked.get("revision") or settings.reviews_revision)
            answer = {name: [len(split), sorted(set(split["label"]))] for name, split in splits.items()}
        elif asked["load"] == "tokenizer":
            answer = load_tokenizer(settings)("positive", add_special_tokens=False)["input_ids"]
        else:
            answer = load_model(settings).num_parameters()
    except CourseError as error:
        answer = str(error)
    print("ANSWER " + json.dumps(answer), flush=True)
"""


def parquet(frame):
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()


def some_reviews(rows):
    """Real IMDb reviews where they are there, else Pocket Reviews: a data frame with as many of both labels."""
    if IMDB.is_dir():
        all_reviews = pd.read_parquet(IMDB / "train.parquet")
    else:
        all_reviews = pd.read_json(POCKET_REVIEWS / "train.jsonl", lines=True)[["text", "label"]]
        all_reviews["label"] = all_reviews["label"].replace({"negative": 0, "positive": 1}).astype(int)
    return pd.concat([all_reviews[all_reviews["label"] == label].head(rows // 2) for label in (0, 1)])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The stand-in with a small random T5, T5's tokenizer, and a slice of IMDb in the Hub's layout."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    source = TOKENIZER if TOKENIZER.is_dir() else POCKET_T5
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, d_model=160, d_kv=8, num_heads=4, d_ff=64, num_layers=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    hub = Hub()
    hub.repositories["models", SMALL.model] = (
        SMALL.model_revision, {path.name: path.read_bytes() for path in folder.iterdir()},
    )  # fmt: skip
    files = {f"plain_text/{name}-00000-of-00001.parquet": parquet(some_reviews(rows)) for name, rows in SPLITS.items()}
    hub.repositories["datasets", SMALL.reviews] = (SMALL.reviews_revision, {"README.md": CARD.encode(), **files})
    yield hub
    hub.shutdown()


@pytest.fixture
def load(hub, worker):
    """A function that loads a model, tokenizer or reviews in the worker, its cache empty at the start of each test."""
    hub.fault, hub.asked = (lambda path: None), []
    processes, cache = worker
    subprocess.run(["rm", "-rf", cache / "hub", cache / "datasets", cache / "xet"], check=True)

    def ask(what, *, offline=False, **more):
        process = processes[offline]
        process.stdin.write(json.dumps({"load": what, **more}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line[7:])
        raise AssertionError("the worker died")

    return ask


@pytest.fixture(scope="module")
def worker(hub, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")} | {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "5",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    log = (cache / "log").open("w")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], env=environment | {"HF_HUB_OFFLINE": offline}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )
        for offline in ("0", "1")
    ]  # fmt: skip
    yield processes, cache
    for process in processes:
        process.stdin.close()
        process.wait(timeout=20)


def test_what_the_profile_pins_is_loaded_and_cached(hub, load):
    words = load("tokenizer")
    assert words == ([1465] if TOKENIZER.is_dir() else words) and len(words) == 1
    assert load("model") > 1_000_000
    assert load("reviews") == {"train": [60, [0, 1]], "test": [40, [0, 1]]}
    assert hub.downloads()
    pinned = {SMALL.model_revision, SMALL.reviews_revision}
    assert {path.split("/resolve/")[1].split("/")[0] for path in hub.downloads()} == pinned
    hub.asked.clear()  # the second time nothing is downloaded, and without a network it works as well
    assert load("tokenizer") == words and load("model") and load("reviews")["test"] == [40, [0, 1]]
    assert hub.downloads() == []
    hub.asked.clear()
    assert load("model", offline=True) and load("reviews", offline=True)["test"] == [40, [0, 1]]
    assert hub.asked == []


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, load):
    weights, megabyte = "model.safetensors", 2**20
    size = len(hub.repositories["models", SMALL.model][1][weights])
    assert size > 20 * megabyte  # the library writes 10 MiB at a time
    cuts = iter([0, 11 * megabyte])  # the first is asked for the head alone
    hub.fault = lambda path: ("cut", next(cuts, size)) if path.endswith(weights) else None
    assert load("model") > 1_000_000
    ranges = [wanted for method, path, wanted in hub.asked if method == "GET" and path.endswith(weights)]
    assert ranges[0] is None and ranges[1] == f"bytes={10 * megabyte}-"


def test_a_download_that_never_comes_whole_leaves_nothing_wrong_behind(hub, load):
    hub.fault = lambda path: ("cut", 1000) if path.endswith("model.safetensors") else None
    said = load("model")
    assert isinstance(said, str) and "download broke off" in said
    hub.fault = lambda path: None
    hub.asked.clear()
    assert load("model") > 1_000_000
    assert not [
        path for path in hub.downloads() if path.endswith("config.json") and "generation" not in path
    ]  # was kept


ANSWERS = {
    401: "unset an expired HF_TOKEN",
    403: "accept its terms",
    404: "check the name",
    429: "wait a few minutes",
    503: "try again later",
}


@pytest.mark.parametrize("what", ["model", "reviews"])
@pytest.mark.parametrize("status", ANSWERS)
def test_what_the_hub_answers_is_said_in_a_sentence(status, what, hub, load):
    hub.fault = lambda path: status
    said = load(what)
    place, setting = (SMALL.model, "BASE_MODEL=") if what == "model" else (SMALL.reviews, "REVIEWS=")
    assert isinstance(said, str) and place in said and f"({status})" in said, said
    assert ANSWERS[status] in said and setting in said and "PROFILE=pocket" in said and "\n" not in said
    hub.fault = lambda path: None  # and nothing bad was kept
    assert not isinstance(load(what), str)


@pytest.mark.parametrize("what", ["model", "reviews"])
def test_offline_without_a_cache_says_so(what, load):
    said = load(what, offline=True)
    assert "HF_HUB_OFFLINE=1 is set" in said and "unset it once" in said


def test_another_revision_is_not_taken_for_the_pinned_one(hub, load):
    said = load("reviews", revision="0" * 40)
    assert "nothing of this name and revision" in said


def test_a_cached_file_that_was_cut_short_is_noticed_and_replaced(hub, load, worker):
    assert load("model") > 1_000_000
    weights = next((worker[1] / "hub").rglob("*.safetensors")).resolve()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5000])
    assert load("model") > 1_000_000  # noticed, and downloaded once more
    assert weights.read_bytes() == whole
    weights.write_bytes(whole[:-5000])
    assert "weights are damaged" in load("model", offline=True)


def test_only_safetensors_and_no_code_of_the_hub(hub, load, tmp_path):
    revision, files = hub.repositories["models", SMALL.model]
    unsafe = {name: content for name, content in files.items() if name != "model.safetensors"}
    hub.repositories["models", "somebody/pickled"] = (revision, unsafe | {"pytorch_model.bin": b"pickle"})
    assert "safetensors" in load("model", model="somebody/pickled")
    mark = tmp_path / "it_ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    config = json.loads(files["config.json"]) | {
        "model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Model"}
    }  # fmt: skip
    evil = files | {"config.json": json.dumps(config).encode(), "evil.py": code}
    hub.repositories["models", "somebody/evil"] = (revision, evil)
    assert "code of its own" in load("model", model="somebody/evil")
    hub.repositories["datasets", "somebody/script"] = (revision, {"script.py": code, "README.md": b"---\n---\n"})
    assert "script" in load("reviews", reviews="somebody/script", revision=revision)
    assert not mark.exists()


def test_a_hub_that_is_not_there_ends_in_a_sentence(tmp_path):
    """The command line against a closed port, with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE",)}
    environment |= {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "FINETUNING_RUNS": str(tmp_path / "runs"),
    }
    code = "from finetuning.data import load_reviews\nload_reviews('stanfordnlp/imdb')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "could not be reached" in last and "REVIEWS=" in last and "HF_HUB_OFFLINE=1" in last
    assert Path(tmp_path / "runs").exists() is False
