"""The prepared script for machines with GPUs, tried in small on two processes."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from authoring import device_check
from finetuning.machine import this_machine, versions
from finetuning.profiles import choose
from finetuning.workspace import Workspace


@pytest.mark.slow
def test_strategies_agree_and_a_failed_part_is_told():
    measured = device_check.strategies(Workspace("device_check", choose(limit=100)), 0, lambda part: 600)
    assert list(measured) == ["plain", "zero2"] and measured["zero2"]["apart"] < 1e-4
    found = {"machine": this_machine(), "versions": versions(), "strategies": measured, "bench": {"failed": "no time"}}
    text = device_check.table(found | {"largest": {"plain t5-3b": {"failed": "it ran out of memory"}}})
    assert f"| zero2 | {measured['zero2']['seconds_per_step']:.3f} |" in text
    assert "| plain t5-3b | it ran out of memory |" in text and text.endswith("bench: no time")


@pytest.mark.soak
def test_the_whole_check_ends_with_all_its_parts(runs):
    """The check of a machine's GPUs, in small on two processes: every part measured."""
    words = [sys.executable, "-m", "authoring", "device-check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=2500)
    assert done.returncode == 0, done.stderr
    found = json.loads((runs / "device_check" / "device_check.json").read_text())
    assert not any("failed" in found[part] for part in device_check.ENDS), done.stdout
    assert found["largest"]["plain t5-small"]["peak_rss_bytes"] > 16 * 60e6 > 0
