"""One table of what can go wrong: each fault is caused for real and must end in a clear sentence with the way out."""

import io
import json
import os
import re
import shutil
import signal
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hub import SMALL, hub_fixture, load_fixture, worker_fixture  # noqa: F401
from processes import said as said_by
from processes import start, wait_until

from authoring import readme
from finetuning.__main__ import main
from finetuning.batching import padded_tokens
from finetuning.course.runner import only_run, run_course
from finetuning.data import load_reviews, save_splits
from finetuning.distributed import jobs, launch
from finetuning.distributed.planner import plan
from finetuning.errors import CourseError
from finetuning.evaluation.pairs import paired
from finetuning.files import seal, write_atomically
from finetuning.labels import label_tokens
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import choose
from finetuning.shipping.predict import predict_file
from finetuning.trainer import resume_point
from finetuning.workspace import Workspace, shipped_folder


def no_text():
    """A Parquet file whose first review has no text."""
    content = io.BytesIO()
    pd.DataFrame({"text": [None, *["fine", "poor"] * 30], "label": [1, *[1, 0] * 30]}).to_parquet(content)
    return content.getvalue()


REVIEWS = "text,label\n" + "".join(f"a {'fine' if i % 2 else 'poor'} film number {i},{i % 2}\n" for i in range(40))
FAULTS = []


def fault(name, sentence, marks=()):
    """Put a cause into the table: a function of the world that raises CourseError or returns what was said."""

    def add(cause):
        FAULTS.append(pytest.param(name, sentence, cause, id=name.replace(" ", "-"), marks=marks))
        return cause

    return add


NO_TABLE = '{"text": "fine", "label": 1}\n{"text": \n'
# name -> a file's ending, what stands in it (None: there is none), and what must be said
FILES = {
    "missing file": ("csv", None, "no file .*check the path"),
    "empty file": ("csv", "", "is empty; expected are a text"),
    "only a head": ("csv", "text,label\n", "no reviews, only a head line"),
    "other columns": ("csv", "opinion,mark\nfine,1\n", "no column 'text'; found are 'opinion', 'mark'"),
    "wrong label": (
        "csv",
        "text,label\nfine,maybe\n",
        r"the reviews' labels are 'maybe' \(1 in all\); .*LABELS=.*LABEL=",
    ),
    "label 2": ("csv", "text,label\nfine,1\npoor,2\n", "review 2: the label is '2'; expected"),
    "empty text": ("csv", "text,label\nfine,1\n,0\n", "review 2: the text is ''; give it a text or take the row out"),
    "too few reviews": ("csv", "text,label\nfine,1\n", "0 negative and 1 positive reviews; at least 10 of each are"),
    "one class": ("csv", "text,label\n" + "fine,1\n" * 50, "0 negative and 50 positive reviews; at least 10 of each"),
    "not utf-8": ("csv", b"text,label\nfa\xe9ade,1\n", "not UTF-8 text .*save it as UTF-8"),
    "ragged": ("csv", "text,label\nfine, really,1\n", "line 2: more cells than columns; put texts .*quotes"),
    "broken JSON line": ("jsonl", NO_TABLE, "line 2: not a JSON object.*one object per line"),
    "JSON but no object": ("jsonl", '["fine", 1]\n', "line 1: not a JSON object"),
    "broken Parquet file": ("parquet", b"PAR1 and then nothing", r"mine\.parquet cannot be read"),
    "no text in Parquet": ("parquet", no_text(), "review 1: the text is None"),
}
for name, (ending, content, sentence) in FILES.items():

    @fault(f"reviews: {name}", f"(?=.*mine[.]{ending}).*{sentence}")
    def _(world, ending=ending, content=content):
        load_reviews(world.file(f"mine.{ending}", content))


@fault("reviews: a file of another kind", "no CSV, TSV, JSON.*save it as one of them")
def _(world):
    load_reviews(world.file("mine.xlsx", "x"))


@fault("reviews: a folder without training reviews", "expected is a file of training reviews there")
def _(world):
    load_reviews(str(world.path))


@fault("reviews: neither a path nor an id", "no file or folder .*, and it is no Hub id")
def _(world):
    load_reviews("no such thing")


@fault("an unknown profile", "no profile 'huge'; choose one of pocket")
def _(world):
    return world.command("run", "--profile", "huge")


@fault("a limit below zero", "limit must be a whole number from 0 up")
def _(world):
    return world.command("run", "--limit", "-3")


@fault("a seed that is no number", "seed must be a whole number")
def _(world):
    choose(seed="one")


@fault("a run's name that leads elsewhere", r"A run's name is made of letters")
def _(world):
    return world.command("run", "--name", "../out")


@fault("a run of other settings in the folder", r"holds a run with seed 1, not 2; give this run a name.*FRESH=1")
def _(world):
    world.workspace.keep_seconds(0)
    Workspace("pocket", choose(seed=2))


@fault("a lesson before its forerunner", r"needs what lesson 01_prepare_data leaves.*run 01_prepare_data\.ipynb first")
def _(world):
    world.workspace.need(world.workspace.data / "reviews", "01_prepare_data")


@fault("a result that no lesson has measured yet", "no result for 'tfidf' yet; run the lesson")
def _(world):
    world.workspace.row("tfidf")


@fault("a damaged results.json", r"results\.json is damaged.*put back a copy.*FRESH=1")
def _(world):
    write_atomically(world.workspace.results_file, "{")
    world.workspace.results()


@fault("a wrong number in results.json", r"results\.json is damaged \(its checksum does not fit\)")
def _(world):
    world.workspace.keep_seconds(1)
    file = world.workspace.results_file
    file.write_text(file.read_text().replace('"seconds": 1', '"seconds": 2'))
    world.workspace.results()


@fault("damaged scores", r"trainer\.json is damaged.*run the lesson that measures 'trainer' again")
def _(world):
    world.workspace.keep_scores("trainer", test=np.ones((2, 2)))
    file = world.workspace.scores_folder / "trainer.json"
    file.write_text(file.read_text().replace("1.0", "0.5", 1))
    world.workspace.scores("trainer")


@fault("damaged prepared data", r"is damaged \(.* has changed.*run 01_prepare_data\.ipynb again")
def _(world):
    folder = save_splits(world.splits, world.workspace.data / "reviews")
    next(folder.rglob("*.arrow")).write_bytes(b"")
    world.workspace.need(folder, "01_prepare_data")


@fault("a torn checkpoint", "passed over")
def _(world):
    from transformers import TrainingArguments

    seal(world.path)
    args = TrainingArguments(output_dir=world.path / "checkpoints", use_cpu=True)
    resume_point(args, world.path)
    torn = world.path / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 5}')
    assert resume_point(args, world.path) is None
    return "it is passed over, and the training goes on from the last whole one, or begins anew"


@fault("a folder that holds no model", r"holds no whole model.*expected are config\.json")
def _(world):
    load_model(choose(base_model=str(world.path)))


@fault("weights cut short", "holds no whole model")
def _(world):
    folder = shutil.copytree(world.model, world.path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    load_model(choose(base_model=str(folder)))


@fault("pickled weights", "holds no whole model")
def _(world):
    folder = shutil.copytree(world.model, world.path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    load_model(choose(base_model=str(folder)))


@fault("a model that is no T5", "'bert' model; this course fine-tunes T5")
def _(world):
    world.file("config.json", '{"model_type": "bert"}')
    load_model(choose(base_model=str(world.path)))


@fault("a tokenizer that does not know the label words", "are the same tokens; .*LABELS=old=new.*choose a T5")
def _(world):
    tokenizer = load_tokenizer(choose(base_model=str(world.model)))
    label_tokens(tokenizer, ("好", "差"))


@fault("an unknown padding strategy", "no padding strategy 'none'; choose")
def _(world):
    padded_tokens(np.ones(3), 2, "none")


@fault("a folder that may not be written", "Could not write .*check the folder's rights")
def _(world):
    world.file("taken", "a file where a folder is wanted")
    write_atomically(world.path / "taken" / "results.json", "{}")


@fault("a second run in the same folder", r"Another run \(process \d+\) works in .*RUN=")
def _(world):
    with only_run("pocket"):
        return world.command("run")


@fault("a lesson's number that is none", "There is no lesson '09'; the lessons are 00, 01")
def _(world):
    return world.command("run", "--lessons", "00,09")


@fault("a lesson that is missing", r"is missing; run this from a clone")
def _(world):
    run_course(lessons=["06_nowhere"])


@fault("Ctrl-C", "stopped; the same command goes on from the last finished lesson", pytest.mark.slow)
def _(world):
    runs = world.path / "stopped"
    process = start(runs, "--lessons", "00")
    assert wait_until(lambda: "00_welcome  started" in said_by(runs), 60)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    return said_by(runs).strip().splitlines()[-1]


@fault("launch: a taken port", "Port .* is taken by another program or run; give another")
def _(world):
    one = jobs.training_job(world.workspace, "port", steps=3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        launch.run(one, launcher="two nodes", port=taken.getsockname()[1])


@fault("launch: an unknown launcher", "no launcher 'mpi'; choose 'torchrun'")
def _(world):
    launch.run(jobs.training_job(world.workspace, "x", steps=3), launcher="mpi")


@fault("launch: the deepspeed launcher is missing", "deepspeed is missing; run make setup")
def _(world):
    world.patch.setattr(sys, "executable", str(world.path / "python"))
    launch.run(jobs.training_job(world.workspace, "x", steps=3), launcher="deepspeed")


@fault(
    "launch: a rank dies",
    "stopped, a rank was killed .*The way out: it ran out of memory or was killed",
    pytest.mark.slow,
)
def _(world):
    launch.run(jobs.training_job(world.workspace, "dies", steps=3, die_at=1), ranks=1, launcher="python")


@fault("zero: an unknown configuration", "no DeepSpeed configuration 'zero9'; choose one of zero0")
def _(world):
    jobs.training_job(world.workspace, "x", deepspeed="zero9")


CONFIGURATIONS = {
    "that is no JSON": ("{", r"mine\.json is no DeepSpeed configuration that can be read"),
    "of a stage that is none": ('{"zero_optimization": {"stage": 4}}', r"mine\.json is no DeepSpeed .*its stage is 4"),
    "with a key that is none": ('{"gradient_cliping": 1}', "no key .*; did you mean .gradient_clipping."),
    "whose stage cannot offload the optimizer": (
        '{"zero_optimization": {"stage": 0, "offload_optimizer": {}}}', "ZeRO stage 0 cannot do offload_optimizer"),
    "whose stage cannot offload parameters": (
        '{"zero_optimization": {"stage": 2, "offload_param": {}}}', "stage 2 cannot do offload_param; take stage 3"),
}  # fmt: skip
for name, (content, sentence) in CONFIGURATIONS.items():

    @fault(f"zero: a configuration {name}", sentence)
    def _(world, content=content):
        jobs.training_job(world.workspace, "x", deepspeed=str(world.where("mine.json", content)))


@fault("zero: no checkpoint to convert", "no whole checkpoint in .*run it with save_steps first")
def _(world):
    launch.universal_checkpoint(jobs.training_job(world.workspace, "x", deepspeed="zero1"))


@fault("plan: an unknown model", "The planner knows t5-small")
def _(world):
    plan("t5-tiny")


@fault("plan: nothing fits", "not even with zero3_offload")
def _(world):
    plan("google-t5/t5-11b", gpus=1, memory="4GB")


@fault("compare: answers on other reviews", "on the same reviews")
def _(world):
    paired(np.ones(3), np.ones(4))


@fault("compare: no answers", "on the same reviews")
def _(world):
    paired([], [])


@fault("predict: no trained model", r"no trained model in .*make run RUN=other")
def _(world):
    shipped_folder("other")


@fault("predict: a model without its prompt", r"holds no finetuning\.json.*run 07_evaluate_and_ship\.ipynb")
def _(world):
    predict_file(world.file("mine.csv", REVIEWS), world.model, io.StringIO())


@fault("readme: no run yet", "run make run first")
def _(world):
    readme.main([])


ANSWERS = {
    401: "unset an expired HF_TOKEN",
    403: "accept its terms",
    404: "check the name",
    429: "wait a few minutes",
    503: "try again later",
}
ASKED = {"model": (SMALL.model, "BASE_MODEL="), "reviews": (SMALL.reviews, "REVIEWS=")}
for what, (place, setting) in ASKED.items():
    for status, way in ANSWERS.items():

        @fault(
            f"the Hub answers {status} to {what}",
            rf"{place} could not be loaded from the Hub: .*\({status}\).*{way}.*{setting}.*PROFILE=pocket",
        )
        def _(world, what=what, status=status):
            server, get = world.hub()
            server.fault = lambda path: status
            answer = get(what)
            server.fault = lambda path: None
            assert not isinstance(get(what), str)  # nothing bad was kept
            return answer

    @fault(f"{what}: offline and not cached", "HF_HUB_OFFLINE=1 is set and it is not in the cache.*unset it once")
    def _(world, what=what):
        return world.hub()[1](what, offline=True)


@fault("a download that breaks off", "download broke off .*try again, files that came whole are kept")
def _(world):
    server, get = world.hub()
    server.fault = lambda path: ("cut", 1000) if path.endswith("model.safetensors") else None
    return get("model")


@fault("a model that wants to run its own code", "wants to run code of its own, which this course does not do")
def _(world):
    server, get = world.hub()
    revision, files = server.repositories["models", "google-t5/t5-small"]
    config = json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}).encode()
    server.repositories["models", "somebody/own"] = (revision, files | {"config.json": config, "own.py": b""})
    return get("model", model="somebody/own")


@pytest.fixture
def world(tmp_path, tiny_model, monkeypatch, capsys, request):
    """What the causes need: a folder, a tiny model, a workspace, the command line, the stand-in for the Hub."""
    from datasets import Dataset, DatasetDict

    def where(name, content):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def command(*arguments):
        assert main(list(arguments)) == 1
        return capsys.readouterr().err.strip()

    rows = Dataset.from_pandas(pd.DataFrame({"text": ["fine"] * 4, "label": [0, 1] * 2}))
    return SimpleNamespace(
        path=tmp_path, model=tiny_model, patch=monkeypatch, workspace=Workspace("pocket", choose()),
        where=where, file=lambda name, content: str(where(name, content)), command=command,
        splits=DatasetDict({"train": rows, "test": rows}),
        hub=lambda: (request.getfixturevalue("hub"), request.getfixturevalue("load")),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "sentence", "cause"), FAULTS)
def test_a_fault_ends_in_a_clear_sentence(name, sentence, cause, world, record_property):
    try:
        said = cause(world)
    except CourseError as error:
        said = str(error)
    assert said is not None, "nothing was said"
    assert re.search(sentence, said, re.DOTALL), said
    assert "Traceback (most" not in said.split("\n  ")[0] and len(said.splitlines()[0]) < 500
    record_property("fault", f"{name:45} {said.splitlines()[0][:150]}")
