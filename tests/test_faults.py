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
from test_data import WRONG
from test_hub import ANSWERS, hub, load, worker  # noqa: F401  (the last three are fixtures)
from test_survival import none_outlives_its_test, start, wait_until  # noqa: F401  (the first is a fixture)

from authoring import readme
from finetuning.__main__ import main
from finetuning.batching import padded_tokens
from finetuning.course.runner import only_run, run_course
from finetuning.data import load_reviews, save_splits
from finetuning.distributed import jobs, launch, zero
from finetuning.distributed.planner import plan
from finetuning.errors import CourseError
from finetuning.evaluation.pairs import paired
from finetuning.files import seal, write_atomically
from finetuning.labels import label_ids
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import choose
from finetuning.shipping.predict import predict_file
from finetuning.shipping.usage import shipped_folder
from finetuning.trainer import resume_point
from finetuning.workspace import Workspace

REVIEWS = "text,label\n" + "".join(f"a {'fine' if i % 2 else 'poor'} film number {i},{i % 2}\n" for i in range(40))
FAULTS = []
TABLE = []


def fault(name, sentence):
    """Put a cause into the table: a function of the world that raises CourseError or returns what was said."""

    def add(cause):
        FAULTS.append(pytest.param(name, sentence, cause, id=name.replace(" ", "-")))
        return cause

    return add


for name, (content, sentence) in WRONG.items():
    fault(f"reviews: {name}", sentence)(lambda world, content=content: load_reviews(world.file("mine.csv", content)))


@fault("reviews: a broken JSON line", r"line 2: not a JSON object.*one object per line")
def _(world):
    load_reviews(world.file("mine.jsonl", '{"text": "fine", "label": 1}\n{"text": \n'))


@fault("reviews: a broken Parquet file", r"mine\.parquet cannot be read")
def _(world):
    load_reviews(world.file("mine.parquet", b"PAR1 and then nothing"))


@fault("reviews: a file of another kind", "no CSV, JSON Lines or Parquet file")
def _(world):
    load_reviews(world.file("mine.xlsx", "x"))


@fault("reviews: a folder without training reviews", "expected is a file of training reviews there")
def _(world):
    load_reviews(str(world.path))


@fault("reviews: neither a path nor an id", "neither a file, a folder nor a Hub id")
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


@fault("a tokenizer without the label words", "cuts the label words into several tokens.*choose a T5")
def _(world):
    tokenizer = load_tokenizer(choose(base_model=str(world.model)))
    label_ids(lambda word, **_: tokenizer(" ".join(word), add_special_tokens=False))


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


@fault("a lesson that is missing", r"is missing; run this from a clone")
def _(world):
    run_course(lessons=["06_nowhere"])


@fault("Ctrl-C", "stopped; the same command goes on from the last finished lesson")
def _(world):
    runs = world.path / "stopped"
    process = start(runs, 1)
    assert wait_until(lambda: "00_welcome  started" in (runs / "said.txt").read_text(), 60)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    return (runs / "said.txt").read_text().strip().splitlines()[-1]


@fault("launch: a taken port", "Port .* is taken by another program or run; give another one")
def _(world):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        launch.free_port(taken.getsockname()[1])


@fault("launch: an unknown launcher", "no launcher 'mpi'; choose 'torchrun'")
def _(world):
    launch.command("mpi", "x.json", 2)


@fault("launch: the deepspeed launcher is missing", "deepspeed is missing; run make setup")
def _(world):
    world.patch.setattr(sys, "executable", str(world.path / "python"))
    launch.command("deepspeed", "x.json", 2)


@fault("launch: a training has no such option", "has no option stepz")
def _(world):
    jobs.training_job(world.workspace, "x", stepz=3)


@fault("launch: a rank dies", "stopped, .*The way out")
def _(world):
    launch.run(jobs.training_job(world.workspace, "dies", steps=3), ranks=1, launcher="python")  # there are no reviews


@fault("zero: an unknown configuration", "no DeepSpeed configuration 'zero9'; choose one of zero0")
def _(world):
    jobs.training_job(world.workspace, "x", deepspeed="zero9")


@fault("zero: a configuration that is no JSON", r"mine\.json")
def _(world):
    zero.check_configuration(world.where("mine.json", "{"))


@fault("zero: a stage that cannot offload", "ZeRO stage 0 cannot do offload_optimizer")
def _(world):
    text = '{"zero_optimization": {"stage": 0, "offload_optimizer": {}}}'
    zero.check_configuration(world.where("mine.json", text))


@fault("zero: no checkpoint to convert", "no whole checkpoint in .*run it with save_steps first")
def _(world):
    launch.universal_checkpoint(jobs.training_job(world.workspace, "x", deepspeed="zero1"))


@fault("plan: an unknown model", "google-t5/t5-small")
def _(world):
    plan("google-t5/t5-tiny")


@fault("plan: nothing fits", "not even with zero3_offload")
def _(world):
    plan("google-t5/t5-11b", gpus=1, memory="4GB")


@fault("compare: answers on other reviews", "on the same reviews")
def _(world):
    paired(np.ones(3), np.ones(4))


@fault("predict: no trained model", r"no trained model in .*make run RUN=other")
def _(world):
    shipped_folder("other")


@fault("predict: a model without its prompt", r"holds no finetuning\.json.*run 05_evaluate_and_ship\.ipynb")
def _(world):
    predict_file(world.file("mine.csv", REVIEWS), world.model, io.StringIO())


@fault("readme: no run yet", "run make run first")
def _(world):
    readme.main([])


def of_the_hub(status, way):
    said = rf"could not be loaded from the Hub: .*\({status}\).*{way}.*BASE_MODEL=.*PROFILE=pocket"

    @fault(f"the Hub answers {status}", said)
    def _(world):
        server, get = world.hub()
        server.fault = lambda path: status
        return get("model")


for status, way in ANSWERS.items():
    of_the_hub(status, way)


@fault("the Hub offline and nothing cached", "HF_HUB_OFFLINE=1 is set and it is not in the cache")
def _(world):
    return world.hub()[1]("model", offline=True)


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
def test_a_fault_ends_in_a_clear_sentence(name, sentence, cause, world):
    try:
        said = cause(world)
    except CourseError as error:
        said = str(error)
    assert said is not None, "nothing was said"
    assert re.search(sentence, said, re.DOTALL), said
    assert "Traceback (most" not in said.split("\n  ")[0] and len(said.splitlines()[0]) < 500
    TABLE.append((name, said.splitlines()[0]))


def test_the_table_of_faults_is_long_enough(capsys):
    assert len(FAULTS) >= 40 and len({name for name, *_ in (param.values for param in FAULTS)}) == len(FAULTS)
    with capsys.disabled():
        print(f"\n{len(TABLE)} faults, each caused and answered:")
        for name, said in TABLE:
            print(f"  {name:45} {said[:150]}")
