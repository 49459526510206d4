"""Runs that survive: two at once, kills at any moment, damage, a full disk, an interrupt."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS, ROOT

from finetuning.course import runner
from finetuning.errors import CourseError
from finetuning.files import find_damage, seal
from finetuning.profiles import choose
from finetuning.workspace import LESSONS, Workspace

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background hands down its deafness
from finetuning.course import runner
runner.LESSONS = runner.LESSONS[: int(sys.argv.pop(1))]
runner.run_course.__kwdefaults__["lessons"] = runner.LESSONS
from finetuning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


STARTED: list[subprocess.Popen] = []


def start(runs, lessons, *arguments, cwd=ROOT):
    """``python -m finetuning run`` on the first lessons, in its own session; output goes to ``<runs>/said.txt``."""
    runs.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(lessons), "run", "--limit", "40", *arguments],
        cwd=cwd, env={**os.environ, "FINETUNING_RUNS": str(runs)}, stdin=subprocess.DEVNULL,
        stdout=(runs / "said.txt").open("a"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def none_outlives_its_test():
    """A test that fails in the middle leaves no run behind, which would slow all others down."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its kernel notices and ends


def said(runs):
    return (runs / "said.txt").read_text()


def left_behind(runs):
    """Processes whose environment names the run's folder: a dict of pid -> command line."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FINETUNING_RUNS={runs}".encode() in (process / "environ").read_bytes():
                found[process.name] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:
            continue
    return found


def wait_until(condition, seconds, *, every=0.02):
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(every)
    return True


def appears(folder, pattern, process):
    """Whether a new file of this pattern comes while the process lives; some stay for milliseconds."""
    before = set(folder.glob(pattern))
    wait_until(lambda: set(folder.glob(pattern)) - before or process.poll() is not None, 200, every=0.002)
    return process.poll() is None and set(folder.glob(pattern)) - before


def accuracies(runs):
    rows = json.loads((runs / "pocket" / "results.json").read_text())["rows"]
    return {row["method"]: (row["accuracy"], row["f1"]) for row in rows}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of lessons 00 to 03 on 40 reviews that nothing disturbed."""
    runs = tmp_path_factory.mktemp("unbroken")
    assert start(runs, 4).wait(timeout=400) == 0, said(runs)
    return runs


# What a kill waits for, in the order of the run: a pattern under the run's folder, or None for a moment by the clock.
MOMENTS = (
    "notebooks/01_prepare_data.ipynb",
    "data/reviews.partial/**/*.arrow",
    None,
    "scores/as_shipped.json",
    "models/trainer/checkpoints/checkpoint-*/model.safetensors",
    "models/trainer/checkpoints/checkpoint-*/optimizer.pt",
    "models/trainer/checkpoints/checkpoint-*/trainer_state.json",
    None,
    "models/broken/checkpoints/checkpoint-*",
    "scores/trainer.json",
    "models/from_scratch/checkpoints/checkpoint-*/optimizer.pt",
    "models/trainer.partial/*",
    None,
)


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_to_the_same_results(unbroken, tmp_path):
    """SIGKILL to all of a run's processes, again and again; the same command goes on."""
    runs, rng = tmp_path / "killed", random.Random(1)
    print()
    for moment in MOMENTS:
        process = start(runs, 4)
        if moment:
            assert appears(runs / "pocket", moment, process), f"{moment} never came\n{said(runs)}"
        else:
            time.sleep(rng.uniform(2, 12))
            assert process.poll() is None, said(runs)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert wait_until(lambda: not left_behind(runs), 10), left_behind(runs)  # the kernel notices and ends
        print(f"killed: {moment or 'by the clock'}")
    assert start(runs, 4).wait(timeout=400) == 0, said(runs)
    assert accuracies(runs) == accuracies(unbroken)
    for method in ("trainer", "from_scratch", "as_shipped"):
        first, second = (json.loads((r / "pocket" / "scores" / f"{method}.json").read_text()) for r in (runs, unbroken))
        assert first == second  # to the sixth digit: the same seed twice gives the same model
    assert not list((runs / "pocket").rglob("*.partial"))
    assert find_damage(runs / "pocket" / "models" / "trainer") is None
    rows = json.loads((runs / "pocket" / "results.json").read_text())["rows"]
    assert all(0.2 < row["train_seconds"] < 300 for row in rows if row["method"] in ("trainer", "from_scratch"))


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    runs = tmp_path / "two"
    first = start(runs, 2)
    assert wait_until(lambda: "01_prepare_data  started" in said(runs), 60)
    second = subprocess.run(
        [sys.executable, "-m", "finetuning", "run", "--limit", "40", "--fresh"],
        cwd=ROOT, env={**os.environ, "FINETUNING_RUNS": str(runs)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert re.search(rf"Another run \(process {first.pid}\) works in .*pocket.*RUN=", second.stderr)
    assert first.wait(timeout=120) == 0, said(runs)  # and the first was not disturbed
    assert (runs / "pocket" / "notebooks" / "00_welcome.ipynb").exists()


DAMAGES = {
    "data": ("data/reviews/train/data-00000-of-00001.arrow", "01_prepare_data", "data/reviews is damaged"),
    "model": ("models/trainer/model.safetensors", "03_finetune_with_trainer", "models/trainer is damaged"),
    "lost": ("models/trainer/tokenizer.json", "03_finetune_with_trainer", "tokenizer.json is gone"),
    "notebook": ("notebooks/02_baselines.ipynb", "02_baselines", "its executed copy has changed"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_noticed_and_the_lesson_run_again(what, unbroken, tmp_path, capsys, monkeypatch):
    name, lesson, words = DAMAGES[what]
    shutil.copytree(unbroken / "pocket", tmp_path / "pocket")
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path))
    victim = tmp_path / "pocket" / name
    if what == "lost":
        victim.unlink()
    elif what == "notebook":
        victim.write_text(victim.read_text().replace("accuracy", "accurate", 1))
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1  # one bit
        victim.write_bytes(content)
    ran = []
    monkeypatch.setattr(runner, "_execute", lambda workspace, lesson, *rest: ran.append(lesson))
    runner.run_course("pocket", limit=40, lessons=LESSONS[:4])
    assert ran == list(LESSONS[LESSONS.index(lesson) : 4])  # it and all that build on it
    assert re.search(rf"{lesson}  is run again: .*{re.escape(words)}", capsys.readouterr().out)


def test_damaged_results_are_put_aside_and_everything_is_run_again(unbroken, tmp_path, capsys, monkeypatch):
    shutil.copytree(unbroken / "pocket", tmp_path / "pocket")
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path))
    results = tmp_path / "pocket" / "results.json"
    results.write_text(results.read_text().replace('"accuracy": 0.5,', '"accuracy": 0.9,', 1))  # a wrong number
    with pytest.raises(CourseError, match="its checksum does not fit"):
        Workspace("pocket", choose("pocket", limit=40)).row("majority")
    ran = []
    monkeypatch.setattr(runner, "_execute", lambda workspace, lesson, *rest: ran.append(lesson))
    runner.run_course("pocket", limit=40, lessons=LESSONS[:4])
    assert ran == list(LESSONS[:4]) and "put aside as results.damaged.json" in capsys.readouterr().out
    assert '"accuracy": 0.9,' in results.with_name("results.damaged.json").read_text()


def test_a_lesson_does_not_trust_what_was_damaged(unbroken, tmp_path, monkeypatch):
    shutil.copytree(unbroken / "pocket", tmp_path / "pocket")
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path))
    workspace = Workspace("pocket", choose("pocket", limit=40))
    assert workspace.need(workspace.models / "trainer", "03_finetune_with_trainer")
    weights = workspace.models / "trainer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])  # cut short
    with pytest.raises(CourseError, match=r"model\.safetensors has changed.*run 03_finetune_with_trainer\.ipynb again"):
        workspace.need(workspace.models / "trainer", "03_finetune_with_trainer")
    scores = workspace.scores_folder / "trainer.json"
    scores.write_text(scores.read_text().replace("0.", "1.", 1))
    with pytest.raises(CourseError, match=r"its checksum does not fit.*run the lesson that measures 'trainer' again"):
        workspace.scores("trainer")


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


def small_course(folder, code):
    """A copy of the course of one lesson, whose last cell is ``code``."""
    (folder / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    keep = [cell for cell in notebook.cells if cell.id in ("00-title", "00-parameters")]
    notebook.cells = [*keep, nbformat.v4.new_code_cell(code, id="00-code")]
    nbformat.write(notebook, folder / "notebooks" / "00_welcome.ipynb")
    return folder


DISTRIBUTED = """
from datasets import Dataset
from finetuning.data import save_splits
from finetuning.distributed import jobs, launch
from finetuning.profiles import choose
from finetuning.workspace import Workspace
from datasets import DatasetDict
workspace = Workspace(run, choose(profile, limit=limit))
rows = Dataset.from_dict({"text": ["fine"] * 64, "input_ids": [[5, 6, 7, 1]] * 64, "labels": [[9, 1]] * 64})
save_splits(DatasetDict({"train": rows, "test": rows}), workspace.data / "reviews")
launch.run(jobs.training_job(workspace, "long", deepspeed="zero2", steps=100000))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupt_stops_a_distributed_run_within_ten_seconds(how, tmp_path):
    runs = tmp_path / "runs"
    process = start(runs, 1, cwd=small_course(tmp_path / "course", DISTRIBUTED))
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


@pytest.mark.slow
def test_an_interrupt_in_a_training_stops_the_kernel(tmp_path):
    runs = tmp_path / "runs"
    code = "while True:\n    pass"
    process = start(runs, 1, cwd=small_course(tmp_path / "course", code))
    assert wait_until(lambda: "00_welcome  started" in said(runs) and len(left_behind(runs)) > 1, 60)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert wait_until(lambda: not left_behind(runs), 8), left_behind(runs)


def test_full_memory_names_the_setting_to_change(tmp_path, monkeypatch):
    from finetuning.course.runner import run_course

    monkeypatch.chdir(small_course(tmp_path / "course", "import torch\ntorch.empty(10**15)"))
    with pytest.raises(CourseError, match=r"the memory is full; set LIMIT= .*batch_size.*run the same command again"):
        run_course(lessons=LESSONS[:1])


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 24 MiB of room. Skips where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_after_it(small_disk, unbroken):
    environment = {**os.environ, "FINETUNING_RUNS": str(small_disk)}
    command = [sys.executable, "-c", PROGRAM, "4", "run", "--limit", "40"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"free some space", done.stderr), done.stderr
    rows = json.loads((small_disk / "pocket" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"majority", "tfidf", "as_shipped"}  # nothing computed is lost
    subprocess.run(["mount", "-o", "remount,size=900m", small_disk], check=True)
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "02_baselines  done before" in again.stdout
    assert accuracies(small_disk) == accuracies(unbroken)


@pytest.mark.slow
def test_a_run_writes_into_its_folder_only_and_keeps_no_secret(tmp_path):
    """A run on hostile reviews, with secrets in the environment and a home folder of its own."""
    text = [
        "<script>alert('x')</script> a fine, fine film",
        "<img src=x onerror=alert(1)> dull",
        "=cmd|' /C calc'!A0 good",
    ]
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"text": f"{text[i % 3]} number {i} {rng.integers(1000)}", "label": int(i % 2)}) for i in range(60)
    ]
    (tmp_path / "hostile.jsonl").write_text("\n".join(lines))
    home, runs = tmp_path / "home", tmp_path / "runs"
    home.mkdir()

    def times():
        ours = (path for path in ROOT.rglob("*") if not set(path.parts) & {".venv", ".git", "runs"})
        return {path: path.stat().st_mtime_ns for path in ours}

    before = times()
    environment = {
        **os.environ, "FINETUNING_RUNS": str(runs), "HOME": str(home),
        "HF_TOKEN": "hf_marker_4711", "SECRET": "marker_0815",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "3", "run", "--reviews", str(tmp_path / "hostile.jsonl")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    changed = {path for path, time in times().items() if before.get(path) != time}
    assert not {path for path in changed if "__pycache__" not in str(path) and path.is_file()}
    strayed = {path.relative_to(home).parts[0] for path in home.rglob("*") if path.is_file()}
    assert strayed <= {".cache", ".ipython", ".jupyter", ".local", ".triton", ".config"}, strayed
    for path in [*runs.rglob("*.html"), *runs.rglob("*.ipynb"), *runs.rglob("*.json")]:
        content = path.read_text()
        assert "hf_marker_4711" not in content and "marker_0815" not in content, path
        if path.suffix == ".html":
            assert "<script>alert" not in content and "<img src=x" not in content, path
    pages = "".join(path.read_text() for path in runs.rglob("*.html"))
    assert "&lt;script&gt;alert" in pages  # it was shown, as text


def test_nothing_of_the_hub_is_run_and_no_pickle_is_loaded():
    sources = {path: path.read_text() for path in [*(ROOT / "src").rglob("*.py"), *NOTEBOOKS]}
    assert not [path for path, source in sources.items() if re.search(r"trust_remote_code\s*=\s*True", source)]
    assert not [path for path, source in sources.items() if re.search(r"weights_only\s*=\s*False|pickle\.load", source)]
    assert "use_safetensors=True" in sources[ROOT / "src" / "finetuning" / "models.py"]
