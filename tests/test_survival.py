"""Runs that survive: two at once, kills, damage, a full disk, an interrupt; and that keep to their folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from conftest import NOTEBOOKS, ROOT, finetuning, random_t5
from processes import (
    PROOF_OF_LESSON_03,
    SPEED_OF_LESSON_03,
    appears,
    course_without,
    left_behind,
    said,
    small_course,
    start,
    wait_until,
)

from finetuning.course.runner import run_course
from finetuning.errors import CourseError
from finetuning.files import find_damage, seal
from finetuning.profiles import POCKET_REVIEWS, choose
from finetuning.workspace import LESSONS, Workspace

HOSTILE = ("<script>alert('x')</script>", "<img src=x onerror=alert(1)>", "=cmd|' /C calc'!A0")
SECRETS = {"HF_TOKEN": "hf_marker_4711", "SECRET": "marker_0815"}


def rows_of(runs):
    rows = json.loads((runs / "pocket" / "results.json").read_text())["rows"]
    return {row["method"]: row for row in rows}


def times():
    """When each file of the course was last written."""
    aside = {".venv", ".git", "runs", "build", "__pycache__", ".pytest_cache"}
    files = (path for path in ROOT.rglob("*") if not aside & set(path.parts) and path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def prepared(request, tmp_path_factory):
    """Lessons 00 to 02 on hostile reviews, with secrets in the environment and a home folder of its own.

    On a small model of random weights, or on the ``shipped`` one, whose files take longer to write.

    ``go_on(runs)`` starts the next lesson on a copy of them, less its charts of speed and its trainings that
    keep nothing.
    """
    folder = tmp_path_factory.mktemp("prepared")
    lines = [json.loads(line) for line in (POCKET_REVIEWS / "train.jsonl").read_text().splitlines()]
    lines = [line for label in (0, 1) for line in [li for li in lines if li["label"] == label][:40]]
    rows = [{"text": f"{HOSTILE[i % 3]} {line['text']}", "label": line["label"]} for i, line in enumerate(lines)]
    reviews = folder / "hostile.jsonl"
    reviews.write_text("\n".join(map(json.dumps, rows)))
    (folder / "home").mkdir()
    arguments, before = ["--reviews", reviews], times()
    if getattr(request, "param", "") != "shipped":
        arguments += ["--base-model", random_t5(folder / "t5", 64, last_norm=4)]
    first = start(folder / "runs", *arguments, "--lessons", "00,01,02", HOME=str(folder / "home"), **SECRETS)
    assert first.wait(timeout=3600) == 0, said(folder / "runs")
    changed = {path for path, time in times().items() if before.get(path) != time}
    course = course_without(folder / "course", *SPEED_OF_LESSON_03, *PROOF_OF_LESSON_03)

    def go_on(runs):
        return start(runs, *arguments, "--lessons", "00,01,02,03", cwd=course)

    return SimpleNamespace(runs=folder / "runs", home=folder / "home", changed=changed, go_on=go_on)


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory):
    """The same run and lesson 03 after it, which nothing disturbed."""
    runs = shutil.copytree(prepared.runs, tmp_path_factory.mktemp("unbroken") / "runs")
    assert prepared.go_on(runs).wait(timeout=3600) == 0, said(runs)
    return runs


def kill(process, runs, moment):
    """SIGKILL to all of a run's processes when a file of this pattern appears, or after so many seconds."""
    if isinstance(moment, str):
        assert appears(runs / "pocket", moment, process), f"{moment} never came\n{said(runs)}"
    else:
        time.sleep(moment)
        assert process.poll() is None, said(runs)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not left_behind(runs), 10), left_behind(runs)  # the kernel notices and ends


def check_same_results(runs, unbroken):
    mine, theirs = rows_of(runs), rows_of(unbroken)
    for part in ("accuracy", "f1"):
        assert {name: row[part] for name, row in mine.items()} == {name: row[part] for name, row in theirs.items()}
    for method in ("trainer", "from_scratch", "as_shipped"):
        first, second = (json.loads((r / "pocket" / "scores" / f"{method}.json").read_text()) for r in (runs, unbroken))
        assert first == second  # to the sixth digit: the same seed twice gives the same model
    assert not list((runs / "pocket").rglob("*.partial"))
    assert find_damage(runs / "pocket" / "models" / "trainer") is None
    assert all(0.2 < mine[method]["train_seconds"] < 300 for method in ("trainer", "from_scratch"))


@pytest.mark.slow
def test_killed_in_the_training_a_run_goes_on_to_the_same_results(prepared, unbroken, tmp_path):
    runs = shutil.copytree(prepared.runs, tmp_path / "runs")
    kill(prepared.go_on(runs), runs, "models/trainer/checkpoints/checkpoint-*/trainer_state.json")
    assert prepared.go_on(runs).wait(timeout=3600) == 0, said(runs)
    check_same_results(runs, unbroken)


# What a kill waits for, in the order of the run: a pattern under the run's folder, or seconds since its start.
MOMENTS = (
    "notebooks/01_prepare_data.ipynb",
    "data/reviews.partial/**/*.arrow",
    3.5,
    "scores/as_shipped.json",
    "models/trainer/checkpoints/checkpoint-*/model.safetensors",
    "models/trainer/checkpoints/checkpoint-*/optimizer.pt",
    "models/trainer/checkpoints/checkpoint-*/trainer_state.json",
    11.2,
    "models/from_scratch/checkpoints/checkpoint-*",
    "scores/trainer.json",
    "models/from_scratch/checkpoints/checkpoint-*/optimizer.pt",
    "models/trainer.partial/*",
    6.1,
)


@pytest.mark.soak
@pytest.mark.parametrize("prepared", ["shipped"], indirect=True)
def test_killed_at_any_moment_a_run_goes_on_to_the_same_results(prepared, unbroken, tmp_path):
    """Thirteen times SIGKILL to all of a run's processes: the same command goes on to the same numbers."""
    runs = tmp_path / "runs"
    for moment in MOMENTS:
        kill(prepared.go_on(runs), runs, moment)
    assert prepared.go_on(runs).wait(timeout=3600) == 0, said(runs)
    check_same_results(runs, unbroken)


WAITS = """
import time
from pathlib import Path
while not Path({!r}).exists():
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    runs, course = tmp_path / "two", small_course(tmp_path / "course", WAITS.format(str(tmp_path / "go on")))
    first = start(runs, "--lessons", "00", cwd=course)
    assert wait_until(lambda: "00_welcome  started" in said(runs), 60)
    second = finetuning("run", "--fresh", runs=runs)
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert re.search(rf"Another run \(process {first.pid}\) works in .*pocket.*RUN=", second.stderr)
    (tmp_path / "go on").touch()
    assert first.wait(timeout=60) == 0, said(runs)  # the first was not disturbed
    assert (runs / "pocket" / "notebooks" / "00_welcome.ipynb").exists()


# Lessons that leave what the first four leave, without learning anything.
WORKSPACE = """
from finetuning.files import seal
from finetuning.profiles import choose
from finetuning.workspace import Workspace
workspace = Workspace(run, choose(profile))
"""
LEAVE = """
folder = workspace.path / {!r}
folder.mkdir(parents=True, exist_ok=True)
for name in {!r}:
    (folder / name).write_text("something " * 100)
seal(folder)
"""
ROW = """
from finetuning.results import ResultRow
workspace.add_rows(ResultRow("02", "majority", accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, f1=0.5, n_test=100))
workspace.keep_scores("majority", test=[[0.5, 0.5]])
"""
SMALL_LESSONS = (
    "print('welcome')",
    WORKSPACE + LEAVE.format("data/reviews", ["rows.arrow"]),
    WORKSPACE + ROW,
    WORKSPACE + LEAVE.format("models/trainer", ["model.safetensors", "tokenizer.json"]),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the small lessons: (the course's folder, the runs' folder)."""
    folder = tmp_path_factory.mktemp("finished")
    course = small_course(folder / "course", *SMALL_LESSONS)
    assert start(folder / "runs", "--lessons", "00,01,02,03", cwd=course).wait(timeout=3600) == 0, said(folder / "runs")
    return course, folder / "runs"


@pytest.fixture
def damaged(finished, tmp_path, monkeypatch, capsys):
    """A copy of the finished run, and a function that runs the course on it: (its folder, the function).

    The function returns the lessons that were run again, and all that was said.
    """

    def go_on():
        run_course("pocket", lessons=LESSONS[:4])
        shown = capsys.readouterr().out
        return re.findall(r"^(\w+)  started", shown, re.MULTILINE), shown

    shutil.copytree(finished[1] / "pocket", tmp_path / "pocket")
    monkeypatch.chdir(finished[0])
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path))
    return tmp_path / "pocket", go_on


DAMAGES = {
    "data": ("data/reviews/rows.arrow", "01_prepare_data", "data/reviews is damaged"),
    "model": ("models/trainer/model.safetensors", "03_finetune_with_trainer", "models/trainer is damaged"),
    "lost": ("models/trainer/tokenizer.json", "03_finetune_with_trainer", "tokenizer.json is gone"),
    "notebook": ("notebooks/02_baselines.ipynb", "02_baselines", "its executed copy has changed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_noticed_and_the_lesson_run_again(what, damaged):
    folder, go_on = damaged
    name, lesson, words = DAMAGES[what]
    victim = folder / name
    if what == "lost":
        victim.unlink()
    elif what == "notebook":
        victim.write_text(victim.read_text().replace("accuracy", "accurate", 1))
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1  # one bit
        victim.write_bytes(content)
    ran, shown = go_on()
    assert ran == list(LESSONS[LESSONS.index(lesson) : 4])  # it and all that build on it
    assert re.search(rf"{lesson}  is run again: .*{re.escape(words)}", shown)
    assert go_on()[0] == []


@pytest.mark.slow
def test_damaged_results_are_put_aside_and_everything_is_run_again(damaged):
    folder, go_on = damaged
    results = folder / "results.json"
    results.write_text(results.read_text().replace('"accuracy": 0.5,', '"accuracy": 0.9,', 1))  # a wrong number
    ran, shown = go_on()
    assert ran == list(LESSONS[:4]) and "put aside as results.damaged.json" in shown
    assert '"accuracy": 0.9,' in results.with_name("results.damaged.json").read_text()
    assert Workspace("pocket", choose("pocket")).row("majority").accuracy == 0.5


@pytest.mark.slow
def test_a_lesson_does_not_trust_what_was_damaged(damaged):
    workspace = Workspace("pocket", choose("pocket"))
    assert workspace.need(workspace.models / "trainer", "03_finetune_with_trainer")
    weights = workspace.models / "trainer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # cut short
    with pytest.raises(CourseError, match=r"model\.safetensors has changed.*run 03_finetune_with_trainer\.ipynb again"):
        workspace.need(workspace.models / "trainer", "03_finetune_with_trainer")


def test_a_seal_tells_what_is_wrong(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("c")
    assert find_damage(tmp_path / "a") == "it was not written to its end"
    seal(tmp_path / "a", seconds=3)
    assert find_damage(tmp_path / "a") is None
    (tmp_path / "a" / "more.txt").write_text("later additions are allowed")
    assert find_damage(tmp_path / "a") is None
    (tmp_path / "a" / "b" / "c.txt").write_text("d")
    assert find_damage(tmp_path / "a") == "b/c.txt has changed since it was written"
    (tmp_path / "a" / "b" / "c.txt").unlink()
    assert find_damage(tmp_path / "a") == "b/c.txt is gone"
    (tmp_path / "a" / "sha256.json").write_text("{")
    assert find_damage(tmp_path / "a") == "sha256.json cannot be read"


DISTRIBUTED = """
from datasets import ClassLabel, Dataset
from finetuning.data import save_splits
from finetuning.distributed import jobs, launch
from finetuning.profiles import choose
from finetuning.workspace import Workspace
from datasets import DatasetDict
workspace = Workspace(run, choose(profile, limit=limit))
rows = {"text": ["fine"] * 64, "label": [0] * 64, "input_ids": [[5, 6, 7, 1]] * 64, "labels": [[9, 1]] * 64}
rows = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["negative", "positive"]))
save_splits(DatasetDict({"train": rows, "test": rows}), workspace.data / "reviews")
launch.run(jobs.training_job(workspace, "long", deepspeed="zero2", steps=2000))
"""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("SIGTERM", marks=pytest.mark.soak)])
def test_an_interrupt_stops_a_distributed_run_within_ten_seconds(how, tmp_path):
    """Ctrl-C or SIGTERM in a DeepSpeed training of a lesson: no process is left ten seconds later."""
    runs = tmp_path / "runs"
    process = start(runs, "--lessons", "00", cwd=small_course(tmp_path / "course", DISTRIBUTED))
    steps = runs / "pocket" / "logs" / "long.log"
    assert wait_until(lambda: steps.exists() and b"| long" in steps.read_bytes(), 90), said(runs)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
    else:
        process.terminate()
    began = time.monotonic()
    assert process.wait(timeout=10) == 130
    assert wait_until(lambda: not left_behind(runs), 10 - (time.monotonic() - began)), left_behind(runs)
    assert "the same command goes on" in said(runs) and "Traceback" not in said(runs)


BUSY = """
from pathlib import Path
Path({!r}).touch()
while True:
    pass
"""


@pytest.mark.slow
@pytest.mark.alone
def test_told_to_end_a_run_stops_the_kernel(tmp_path):
    """By SIGTERM, as a batch system does, in the middle of a computation."""
    runs, mark = tmp_path / "runs", tmp_path / "it computes"
    process = start(runs, "--lessons", "00", cwd=small_course(tmp_path / "course", BUSY.format(str(mark))))
    assert wait_until(mark.exists, 60), said(runs)
    process.terminate()
    assert process.wait(timeout=10) == 130
    assert wait_until(lambda: not left_behind(runs), 8), left_behind(runs)


@pytest.mark.slow
def test_full_memory_names_the_setting_to_change(tmp_path, monkeypatch):
    monkeypatch.chdir(small_course(tmp_path / "course", "import torch\ntorch.empty(10**15)"))
    with pytest.raises(CourseError, match=r"the memory is full; set LIMIT= .*batch_size.*run the same command again"):
        run_course(lessons=LESSONS[:1])


@pytest.fixture
def small_disk(tmp_path):
    """A runs folder with 24 MiB of room for the run ``pocket``. Skips where this process may not mount one."""
    folder = tmp_path / "runs"
    (folder / "pocket").mkdir(parents=True)
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder / "pocket"]
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount command")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder / "pocket"], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_after_it(small_disk, prepared, unbroken):
    """Lesson 03 on a disk too small for its checkpoints, and once more when there is room."""
    shutil.copytree(prepared.runs / "pocket", small_disk / "pocket", dirs_exist_ok=True)
    assert prepared.go_on(small_disk).wait(timeout=3600) == 1, said(small_disk)
    assert "free some space" in said(small_disk) and "Traceback" not in said(small_disk), said(small_disk)
    assert rows_of(small_disk).keys() >= {"majority", "tfidf", "as_shipped"}  # nothing computed is lost
    subprocess.run(["mount", "-o", "remount,size=900m", small_disk / "pocket"], check=True)
    assert prepared.go_on(small_disk).wait(timeout=3600) == 0, said(small_disk)
    assert "02_baselines  done before" in said(small_disk)
    check_same_results(small_disk, unbroken)


@pytest.mark.slow
def test_a_run_writes_into_its_folder_only_and_keeps_no_secret(prepared):
    assert not prepared.changed
    strayed = {path.relative_to(prepared.home).parts[0] for path in prepared.home.rglob("*") if path.is_file()}
    assert strayed <= {".cache", ".ipython", ".jupyter", ".local", ".triton", ".config"}, strayed
    for path in [*prepared.runs.rglob("*.html"), *prepared.runs.rglob("*.ipynb"), *prepared.runs.rglob("*.json")]:
        content = path.read_text()
        assert not any(secret in content for secret in SECRETS.values()), path
        if path.suffix == ".html":
            assert "<script>alert" not in content and "<img src=x" not in content, path
    pages = "".join(path.read_text() for path in prepared.runs.rglob("*.html"))
    assert "&lt;script&gt;alert" in pages  # it was shown, as text


def test_nothing_of_the_hub_is_run_and_no_pickle_is_loaded():
    sources = {path: path.read_text() for path in [*(ROOT / "src").rglob("*.py"), *NOTEBOOKS]}
    assert not [path for path, source in sources.items() if re.search(r"trust_remote_code\s*=\s*True", source)]
    assert not [path for path, source in sources.items() if re.search(r"weights_only\s*=\s*False|pickle\.load", source)]
    assert "use_safetensors=True" in sources[ROOT / "src" / "finetuning" / "models.py"]
