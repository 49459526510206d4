"""The Hub path for real: the libraries' own downloads, from a stand-in for the Hub on this machine."""

import json
import os
import subprocess
import sys

import pytest
from hub import IMPATIENT, SMALL, TOKENIZER, hub_fixture, load_fixture, worker_fixture  # noqa: F401


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


@pytest.mark.slow
def test_a_hub_that_is_not_there_ends_in_a_sentence(tmp_path):
    """The command line against a closed port, with an empty cache."""
    away = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT + "from finetuning.data import load_reviews\nload_reviews('a/b')"],
        env={**os.environ, **away}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "could not be reached" in last and "REVIEWS=" in last and "HF_HUB_OFFLINE=1" in last
