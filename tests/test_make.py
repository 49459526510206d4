"""The make targets on machines that lack something."""

import os
import re
import subprocess

import pytest
from conftest import ROOT


def make(*arguments):
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": ""},
    )


def fake_python(folder, script):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('[ "$1" = --version ] && echo Python 3.9.1; exit 1', "needs Python 3.11, 3.12 or 3.13"),
        ('case "$2" in *venv*) exit 1;; esac; exit 0', "no venv module"),
    ],
)
def test_setup_refuses_what_cannot_work(tmp_path, script, expected):
    done = make("setup", f"PYTHON={fake_python(tmp_path, script)}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert expected in done.stdout
    assert not (tmp_path / "venv").exists()


def test_setup_wants_space(tmp_path):
    done = make("setup", f"VENV={tmp_path / 'venv'}", "NEEDED_GIB=999999")
    assert done.returncode != 0 and "needs 999999 GiB of free space" in done.stdout


def test_help_lists_every_target():
    listed = make("help").stdout
    for target in (
        line.split(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if ":  ##" in line or ": setup  ##" in line
    ):
        assert f"make {target}" in listed
    for line in listed.splitlines()[1:]:
        assert re.search(r"\(.*(seconds?|minutes).*\)$", line), line


def test_requirements_are_pinned():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert not line or line.startswith("#") or line == "-e ." or "==" in line, line
