"""What lies around the lessons: README, licence, CI, links, types, and the cell that sets the course up elsewhere."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import asdict, replace
from pathlib import Path

import links
import nbformat
import pytest
import yaml
from conftest import NOTEBOOKS, ROOT
from packaging.specifiers import SpecifierSet

import finetuning
from authoring import first_cell, readme
from authoring.blocks import fill_block
from finetuning.course.runner import LEAVES
from finetuning.errors import CourseError
from finetuning.files import digest, file_digest, seal, with_digest
from finetuning.profiles import PROFILES
from finetuning.results import ResultRow, Results
from finetuning.workspace import LESSONS, home

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "https://github.com/somebody/fork"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# the README


def block(text, name):
    """What stands between a block's marks; empty where a mark is missing."""
    found = re.search(rf"<!-- {name}: begin \(make readme\) -->\n(.*?)\n<!-- {name}: end -->", text, re.DOTALL)
    return found[1] if found else ""


def table(text):
    """The first Markdown table of a text: (columns, rows), each a tuple of cells."""
    lines = [
        tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in text.splitlines() if line[:1] == "|"
    ]
    return (lines[0], lines[2:]) if len(lines) > 2 else ((), [])


def faults(text):
    """What is wrong with the form of a README, whatever its numbers."""
    found = [f"block {name}" for name in ("start", "results", "memory", "lessons", "profiles") if not block(text, name)]
    wanted = {
        "results": (readme.RESULT_COLUMNS, [method.replace("_", r"\_") for method in readme.METHODS], 1),
        "lessons": (readme.LESSON_COLUMNS, [*(f"(notebooks/{lesson}.ipynb)" for lesson in LESSONS), "all"], 0),
        "profiles": (readme.PROFILE_COLUMNS, [f"`{profile}`" for profile in PROFILES], 0),
    }
    for name, (columns, named, key) in wanted.items():
        head, rows = table(block(text, name))
        if head != columns:
            found.append(f"columns of {name}")
        if len(rows) != len(named) or not all(mark in row[key] for mark, row in zip(named, rows, strict=True)):
            found.append(f"rows of {name}")
    if not re.search(r"!\[.+?: .+?\]\(img/results\.svg\)", block(text, "results")):
        found.append("picture of results")
    picture = re.search(r"!\[(.+?)\]\(img/zero_memory\.svg\)", block(text, "memory"))
    if not picture or not all(f"stage {stage}" in picture[1] for stage in range(4)):
        found.append("picture of memory")
    return found


def test_the_readme_is_filled_in_today_s_form():
    assert faults(README) == [], "run make readme after a make run"
    for picture in readme.PICTURES:
        assert (ROOT / "img" / picture).read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("<!-- memory: end -->", "", "block memory"),
        ("| F1 |", "| recall |", "columns of results"),
        (r"| deepspeed\_zero3 |", "| deepspeed |", "rows of results"),
        ("| `11b` |", "| `12b` |", "rows of profiles"),
        ("(notebooks/04_scale_with_deepspeed.ipynb) |", "(notebooks/04.ipynb) |", "rows of lessons"),
        ("| reading and exercises |", "|", "columns of lessons"),
        ("(img/zero_memory.svg)", "(img/memory.png)", "picture of memory"),
        ("(img/results.svg)", "(img/results.png)", "picture of results"),
    ],
)
def test_a_stale_form_is_noticed(before, after, fault):
    assert before in README
    assert fault in faults(README.replace(before, after))


def test_no_number_of_the_readme_is_typed():
    text = re.sub(r"<!-- (\w+): begin .*?<!-- \1: end -->|^    .*?$", "", README, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\(\S+?\)|`[^`\n]*`", "", text)
    versions = r"Python 3\.11 to 3\.14|python3\.14|CC BY 4\.0|CC0 1\.0|Apache-2\.0"
    names = r"[Ll]essons? \d\d( to \d\d)?|0\d (another|and 0\d one each)|T5|WSL2|fp\d\d|bf16|-100s|zero2_offload"
    assert re.findall(r".*\d.*", re.sub(f"{versions}|{names}", "", text)) == []


@pytest.fixture
def measured(runs):
    """A small run with every method of the course, left in the test's runs folder: its results."""
    run = {"profile": "pocket", "model": "pocket T5", "dataset": "Pocket Reviews", "limit": 0, "seed": 1, "seconds": 0}
    run |= {"started": "2030-01-02T03:04:05+0000", "hardware": {"gpu": None, "cores": 2, "processor": "a processor"}}
    run |= {"versions": dict.fromkeys(("torch", "transformers", "deepspeed"), "9.9")}
    rows = []
    for i, method in enumerate(readme.METHODS):
        accuracy, stage, held = 0.9 - i / 100, None, None
        if "_zero" in method and method[-1].isdigit():
            stage = int(method[-1])
            held = {"parameters": 2**22, "optimizer": 2**23 >> stage}
        speeds = {"train_seconds": 1.0, "predict_reviews_per_second": 2.0}
        counts = {"parameters": 2**20, "world_size": 2, "peak_rss_bytes": 3 * 2**29}
        row = ResultRow("03", method, accuracy, accuracy, accuracy, f1=0.5, n_test=500, **speeds, **counts)
        rows.append(replace(row, stage=stage, bytes_per_rank=held))
    folder = runs / "pocket"
    (folder / "notebooks").mkdir(parents=True)
    for i, lesson in enumerate(LESSONS):
        notebook = nbformat.v4.new_notebook(metadata={"finetuning": {"seconds": 10.0 * i}})
        nbformat.write(notebook, folder / "notebooks" / f"{lesson}.ipynb")
    results = Results(run, rows)
    (folder / "results.json").write_text(json.dumps(with_digest({"schema": 1, **asdict(results)})))
    return results


def test_the_readme_says_what_the_run_measured(measured, tmp_path):
    filled = readme.block_contents(measured)
    line = next(line for line in filled["results"].splitlines() if r"| as\_shipped |" in line)
    assert "| 0.880 | 0.880 to 0.880 |" in line and "| 1,048,576 |" in line
    # the trainer loses to the bag of words in this run, and the text says so
    assert "tfidf (0.890) is better than trainer (0.870)" in filled["results"]
    assert "stage 0 12.0 MiB, stage 1 8.0 MiB, stage 2 6.0 MiB, stage 3 5.0 MiB" in filled["memory"]
    assert "fp32, 2 ranks" in filled["memory"]
    *_, last, together = filled["lessons"].splitlines()
    whole = f"{sum(range(len(LESSONS))) / 6:.0f} minutes"
    assert f"| {10 * (len(LESSONS) - 1)} s |" in last and f"| {whole} |" in together
    assert f"| {whole} (2 cores of a processor) | 1.5 GiB per process |" in filled["profiles"]
    assert filled["profiles"].splitlines()[3].endswith("| not measured here | not measured here |")
    text = README
    for name, content in filled.items():
        text = fill_block(text, name, content, readme.COMMAND)
    assert faults(text) == []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        readme.draw_pictures(measured, tmp_path / folder)
    for picture in readme.PICTURES:
        assert (tmp_path / "a" / picture).read_text() == (tmp_path / "b" / picture).read_text()


def test_what_a_run_did_not_measure_is_said_not_guessed(measured, runs):
    measured.rows[:] = [row for row in measured.rows if row.method not in ("trainer", "deepspeed_zero3")]
    (runs / "pocket" / "notebooks" / f"{LESSONS[2]}.ipynb").unlink()
    filled = readme.block_contents(measured)
    assert "| - | trainer | not measured here | - |" in filled["results"] and "By this run" not in filled["results"]
    assert filled["memory"] == "Memory per rank: not measured here."
    assert "not measured here" in filled["lessons"].splitlines()[-1]
    assert filled["profiles"].count("not measured here") == 2 * len(PROFILES)


def test_without_a_mark_a_sentence_says_so():
    with pytest.raises(CourseError, match="lost the marks"):
        fill_block("<!-- a: begin (b) -->", "a", "content", "b")


def test_the_readme_names_the_methods_that_the_course_measures(pocket_run):
    results = json.loads((pocket_run[1] / "results.json").read_text())
    assert {row["method"] for row in results["rows"]} == set(readme.METHODS)


# setting up elsewhere


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A machine without the course, an empty environment, and a clone's origin: (python, origin, variables)."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "venv", with_pip=True)
    origin = place / "origin"
    shutil.copytree(ROOT / "src", origin / "src", ignore=shutil.ignore_patterns("assets", "*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, origin)
    (origin / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS[0], origin / "notebooks")
    (origin / "requirements.txt").write_text("-e .\n")  # the libraries would need the network
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "course"]):
        subprocess.run([*git, *words], check=True)
    tools = place / "tools"  # what pip builds with, which it would otherwise fetch
    tools.mkdir()
    import setuptools

    source = Path(setuptools.__file__).parent
    for name in ("setuptools", "_distutils_hack"):
        (tools / name).symlink_to(source.with_name(name))
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    variables |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": str(tools), "GIT_CONFIG_COUNT": "1"}
    variables |= {"GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf", "GIT_CONFIG_VALUE_0": ADDRESS}
    variables |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return place / "venv" / "bin" / "python", origin, variables


@pytest.mark.slow
@pytest.mark.parametrize("where", ["an empty folder", "a clone"])
def test_the_first_cell_sets_the_course_up_where_it_is_missing(elsewhere, tmp_path, where):
    python, origin, variables = elsewhere
    cell = first_cell.FETCH.replace("{address}", ADDRESS)
    clone = origin if where == "a clone" else tmp_path / "course"
    folder = origin / "notebooks" if where == "a clone" else tmp_path

    def run(code):
        return subprocess.run([python, "-c", code], cwd=folder, env=variables, capture_output=True, text=True)

    try:
        without = run(first_cell.SENTENCE)
        assert without.returncode == 1 and without.stderr.startswith("This kernel lacks the course: type `make lab`")
        first = run(cell)
        assert first.returncode == 1 and "Restart the kernel" in first.stderr and "rror" not in first.stderr, (
            first.stderr
        )
        for source in (cell, first_cell.SENTENCE):  # in the restarted kernel
            again = run(source)
            assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        found = run("import finetuning; print(finetuning.__file__)")
        assert Path(found.stdout.strip()).is_relative_to(clone / "src"), found.stderr
        assert (clone / "src" / "finetuning").is_dir() and (
            where == "an empty folder" or not (folder / "course").exists()
        )
    finally:
        subprocess.run([python, "-m", "pip", "uninstall", "-qy", "finetuning"], env=variables, check=True)


def test_a_notebook_away_from_the_clone_finds_it(tmp_path, monkeypatch):
    """On Colab a notebook runs in a folder of its own; its runs belong into the clone that the first cell made."""
    monkeypatch.chdir(tmp_path)
    assert home() == ROOT


@pytest.mark.parametrize("cell", [first_cell.SENTENCE, first_cell.FETCH.replace("{address}", "none")])
def test_the_first_cell_does_nothing_where_the_course_is_installed(tmp_path, cell):
    done = subprocess.run([sys.executable, "-c", cell], cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["", ADDRESS], ids=["no address", "an address"])
def address(request, tmp_path, monkeypatch):
    """The address that a clone's ``pyproject.toml`` names, with that clone as the course's home."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    named = f'[project.urls]\nRepository = "{request.param}"\n' if request.param else ""
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "finetuning"\n{named}')
    monkeypatch.chdir(tmp_path)
    return request.param


def test_cells_and_links_have_the_address_that_pyproject_names_or_none(address, measured):
    first_cell.put_first_cells()
    for lesson in LESSONS:
        before, after = (nbformat.read(place / f"notebooks/{lesson}.ipynb", as_version=4) for place in (ROOT, home()))
        assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
        found = re.findall(r"https?://[^\s\"]+", after.cells[1].source)
        assert found == ([address] if address else [])
        assert after.cells[2:] == before.cells[2:]
    start = readme.block_contents(measured)["start"]
    if address:
        assert f"git clone {address} course && cd course\n" in start
        assert "codespaces.new/somebody/fork" in start and start.count("colab.research") == len(LESSONS)
    else:
        assert "In a clone of this repository:" in start and "http" not in start.replace("https://download.pytorch", "")


# what CI, editors and readers get


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_and_nothing_else(path):
    workflow = yaml.safe_load(path.read_text())
    writes = {right for right, level in workflow["permissions"].items() if level != "read"}
    assert writes == ({"issues"} if path.stem == "weekly" else set())
    makefile = (ROOT / "Makefile").read_text()
    for name, job in workflow["jobs"].items():
        assert set(job.get("permissions", {})) == ({"pages", "id-token"} if name == "publish" else set())
        assert job["timeout-minutes"]
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
            elif step.get("if") == "failure()":
                assert "gh issue create" in step["run"]
            else:
                chosen = job.get("strategy", {}).get("matrix", {}).get("target", [])
                target = re.fullmatch(r"make (\w+|\$\{\{ matrix\.target \}\})( [A-Z]+=[\w,]+)?", step["run"])[1]
                assert all(f"\n{name}:" in makefile for name in (chosen if "{" in target else [target]))


def test_ci_runs_on_the_oldest_and_the_newest_python_and_on_what_the_readme_promises():
    supported = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    newest = re.search(r"Python [\d.]+ to (3\.\d+)", block(README, "start"))[1]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    pythons = [
        step["with"]["python-version"]
        for job in jobs
        for step in job["steps"]
        if "python-version" in step.get("with", {})
    ]
    assert {minors[0], newest} <= set(pythons) <= {*minors[: minors.index(newest) + 1]}
    assert f"tested on Python {minors[0]} to {newest};" in (ROOT / "Makefile").read_text()
    done = [[step.get("run") for step in job["steps"]] for job in jobs]
    assert any("make test" in steps for steps in done) and all({"make test", "make quick"} & {*steps} for steps in done)
    promised = {
        runner
        for name, runner in (("Linux", "ubuntu"), ("macOS", "macos"), ("Windows", "windows"))
        if name in block(README, "start")
    }
    assert {job["runs-on"].split("-")[0] for job in jobs} == promised


def test_a_failure_that_stays_makes_one_issue(tmp_path):
    """The script of weekly.yml, with a stand-in for gh that knows one issue by its title."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text())["jobs"]["weekly"]["steps"]
    step = next(step for step in steps if step.get("if") == "failure()")
    gh = tmp_path / "gh"
    gh.write_text(
        f'#!/bin/sh\n[ "$2" = list ] && [ -f {tmp_path}/open ] && echo 7\necho "$1 $2 $3" >> {tmp_path}/said\n'
    )
    gh.chmod(0o755)
    for state in ("closed", "open"):
        if state == "open":
            (tmp_path / "open").touch()
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TITLE": step["env"]["TITLE"], "BODY": "b"}
        subprocess.run(["bash", "-e", "-c", step["run"]], env=variables, check=True)
    said = (tmp_path / "said").read_text().splitlines()
    assert said == ["issue list --state", "issue create --title", "issue list --state", "issue comment 7"]


def test_commit_hook_and_container_use_the_same_commands():
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    assert [(hook["entry"], hook["language"]) for hook in hooks] == [("make lint", "system")]
    text = re.sub(r"^\s*//.*$", "", (ROOT / ".devcontainer" / "devcontainer.json").read_text(), flags=re.MULTILINE)
    container = json.loads(text)
    assert container["updateContentCommand"] == "make setup"
    assert all((ROOT / name).is_file() for name in container["customizations"]["codespaces"]["openFiles"])


def test_latest_strips_every_pin(tmp_path):
    shown = subprocess.run(["make", "-n", "latest", "MAKE=echo"], cwd=ROOT, capture_output=True, text=True).stdout
    sed = re.search(r"sed '(.*?)'", shown)[1]
    done = subprocess.run(["sed", sed, "requirements.txt"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "==" not in done.stdout and "\n-e .\n" in done.stdout and "\ntransformers\n" in done.stdout
    assert "VENV=build/latest REQUIREMENTS=build/requirements.txt" in shown


def test_contributing_says_what_each_test_file_proves():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^    (test_\w+)  +\S.*$", text, re.MULTILINE)
    assert listed == sorted(path.stem for path in (ROOT / "tests").glob("test_*.py"))


def test_licence_and_citation():
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "The fine-tuning course contributors"}]  # an entity, no person
    assert citation["version"] == finetuning.__version__
    assert citation["title"] == README.splitlines()[0].strip("# ")


def test_links_inside_the_repository_lead_somewhere(tmp_path):
    assert links.broken(ROOT) == []
    (tmp_path / "a.md").write_text("# One thing\n\n[a](b.md) [b](#one-thing) [c](#two) [d](https://x.y/z) `[e](f)`\n")
    assert [target for _, target in links.broken(tmp_path)] == ["b.md", "#two"]
    (tmp_path / "a.md").write_text("[a](notebooks/g.ipynb#cell-id=here) [b](notebooks/g.ipynb#A-word)\n")
    (tmp_path / "notebooks").mkdir()
    cell = nbformat.v4.new_markdown_cell("## A word\n\n[a](#A-word) [b](#a-word)", id="here")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / "g.ipynb")
    assert [target for _, target in links.broken(tmp_path)] == ["notebooks/g.ipynb#A-word", "#a-word"]


def sizes(path):
    """(lines of a module, [(function, its lines)])."""
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return len(text.splitlines()), [(node.name, node.end_lineno - node.lineno + 1) for node in functions]


def test_modules_and_functions_are_short_enough_to_be_read():
    for path in (ROOT / "src").rglob("*.py"):
        lines, functions = sizes(path)
        assert lines <= 350, path
        assert [name for name, length in functions if length > 60] == [], path


def test_what_the_lessons_import_is_small_enough_to_be_read():
    assert sum(sizes(path)[0] for path in (ROOT / "src" / "finetuning").rglob("*.py")) <= 7_100


def test_a_finished_run_is_shown_without_loading_what_trains(measured, runs):
    """So that a second ``make run`` answers at once."""
    (runs / "pocket" / "report.html").write_text("report")
    for left in (left for folders in LEAVES.values() for left in folders):
        (runs / "pocket" / left).mkdir(parents=True)
        seal(runs / "pocket" / left)
    for path in NOTEBOOKS:
        copy = nbformat.read(path, as_version=4)
        cells = digest(json.loads(nbformat.writes(copy))["cells"])
        copy.metadata["finetuning"] = {"source": file_digest(path), "cells": cells, "seconds": 1.0}
        nbformat.write(copy, runs / "pocket" / "notebooks" / path.name)
    code = (
        "import sys; from finetuning.__main__ import main; main(['run']); "
        "print(*{'torch', 'datasets', 'papermill', 'nbconvert', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.stdout.count("done before") == len(LESSONS) and lines[-1] == "", done.stdout + done.stderr
    assert any(" tfidf " in line and "0.890" in line for line in lines)


@pytest.mark.parametrize(
    "words", ["--help", "predict --help", "predict --run none reviews.csv", "plan --help", "train none.json"]
)
def test_a_command_that_only_answers_loads_nothing_heavy(words, runs):
    code = (
        "import sys, contextlib\nfrom finetuning.__main__ import main\n"
        f"with contextlib.suppress(SystemExit): main({words.split()!r})\n"
        "print(*{'torch', 'datasets', 'transformers', 'sklearn', 'deepspeed', 'matplotlib', 'evaluate'} & "
        "set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout + done.stderr
