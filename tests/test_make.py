"""The make targets on machines that lack something."""

import os
import re
import subprocess

import pytest
from conftest import ROOT


def make(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**clean, "MAKEFLAGS": "", **environment},
    )


def fake_python(folder, script):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('[ "$1" = --version ] && echo Python 3.9.1; exit 1', "needs Python 3.11 or newer"),
        ('case "$2" in *venv*) exit 1;; esac; exit 0', "no venv module"),
    ],
)
def test_setup_refuses_what_cannot_work(tmp_path, script, expected):
    done = make("setup", f"PYTHON={fake_python(tmp_path, script)}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert expected in done.stdout
    assert not (tmp_path / "venv").exists()


def test_a_newer_python_is_warned_of_and_not_refused(tmp_path):
    """A python that says it is 3.99, and has no venv module, so that setting up ends there."""
    newer = fake_python(tmp_path, 'case "$2" in *venv*) exit 1;; *"> (3,"*) exit 1;; esac; exit 0')
    done = make("setup", f"PYTHON={newer}", f"VENV={tmp_path / 'venv'}")
    assert "tested on Python 3.11 to 3.14" in done.stdout and "is newer" in done.stdout
    assert "no venv module" in done.stdout.split("is newer")[1]


def test_setup_wants_space(tmp_path):
    done = make("setup", f"VENV={tmp_path / 'venv'}", "NEEDED_GIB=999999")
    assert done.returncode != 0 and "needs 999999 GiB of free space" in done.stdout


def test_the_environment_of_another_clone_is_not_taken_over(tmp_path):
    """A python whose finetuning lies elsewhere unless PYTHONPATH says where."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = fake_python(tmp_path / "venv" / "bin", 'echo "${PYTHONPATH:-/other/src}/finetuning/__init__.py"')
    lent = f"VENV={python.parent.parent}"
    for target in ("setup", "run", "lint", "figures"):
        done = make(target, lent)
        assert done.returncode != 0 and "runs the course of another folder, /other/src/finetuning" in done.stdout
    done = make("setup", lent, PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 0 and "nothing is installed into it" in done.stdout
    assert not (tmp_path / "venv" / "installed").exists()


def test_a_trainings_file_may_have_any_name(tmp_path):
    """What the command is given, where neither make nor the shell has read it."""
    (tmp_path / "bin").mkdir()
    fake_python(
        tmp_path / "bin", f'case "$*" in *finetuning\\ train*) printf "%s|" "$@";; *) echo "{ROOT}/src/x";; esac'
    )
    name = "my $(files)/it's; `one` $HOME.yaml"
    done = make("train", f"VENV={tmp_path}", f"CONFIG={name}", "PROCESSES=2", PYTHONPATH=str(ROOT / "src"))
    assert done.stdout.splitlines()[-1].endswith(f"finetuning|train|--processes|2|--|{name}|")


def test_help_lists_every_target():
    listed = make("help").stdout
    for target in (
        line.split(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if re.match(r"[a-z-]+:.*  ## ", line)
    ):
        assert f"make {target}" in listed
    for line in listed.splitlines()[1:]:
        assert re.search(r"\(.*(seconds?|minutes).*\)$", line), line


def test_the_lab_neither_asks_about_news_nor_looks_for_a_newer_one(tmp_path):
    """JupyterLab's own reading of its settings, for a reader who has none."""
    from jupyterlab.commands import get_app_dir
    from jupyterlab_server.settings_utils import get_settings

    defaults = re.search(r'app_settings_dir="(.+?)"', make("-n", "lab").stdout)[1]
    schemas = f"{get_app_dir()}/schemas"
    name = "@jupyterlab/apputils-extension:notification"
    asked = get_settings(str(tmp_path), schemas, str(tmp_path), name)[0]["schema"]["properties"]
    quiet = get_settings(defaults, schemas, str(tmp_path), name)[0]["schema"]["properties"]
    assert asked["fetchNews"]["default"] == "none"  # else it needs no setting any more
    assert quiet["fetchNews"]["default"] == "false" and quiet["checkForUpdates"]["default"] is False


def test_requirements_are_pinned():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert not line or line.startswith("#") or line == "-e ." or "==" in line, line
