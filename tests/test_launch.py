"""The launcher's watch over its processes, tried on small programs instead of trainings."""

import sys
import time

import pytest

from finetuning.distributed import jobs, launch
from finetuning.errors import CourseError
from finetuning.profiles import choose
from finetuning.workspace import Workspace

pytestmark = pytest.mark.alone


@pytest.fixture
def program(monkeypatch):
    """A function that makes ``launch.run`` start programs (Python code) instead of a training, a process each."""

    def instead(*codes):
        commands = [[sys.executable, "-c", code] for code in codes]
        monkeypatch.setattr(launch, "command", lambda *arguments: commands)
        return jobs.training_job(Workspace("watched", choose()), "watched")

    return instead


def test_an_unfinished_line_does_not_suspend_the_time_limit(program):
    one = program("import sys, time\nsys.stdout.write('abc')\nsys.stdout.flush()\ntime.sleep(20)")
    began = time.monotonic()
    with pytest.raises(CourseError, match="did not end within 2 s and was stopped"):
        launch.run(one, ranks=1, limit=2)
    assert time.monotonic() - began < 10
    assert one.log.read_text() == "abc"


def test_lines_that_arrive_together_show_at_once(program, monkeypatch):
    seen = {}

    def show(line, flush):
        seen[line] = time.monotonic()

    monkeypatch.setattr("builtins.print", show)
    one = program("import os, time\nos.write(1, b'| one\\nnot for the reader\\n| two\\n| three\\n')\ntime.sleep(3)")
    with pytest.raises(CourseError, match="the launcher failed"):  # it left no answer
        launch.run(one, ranks=1, limit=20)
    assert list(seen) == ["one", "two", "three"]
    assert seen["three"] - seen["one"] < 0.5
    assert one.log.read_text() == "| one\nnot for the reader\n| two\n| three\n"


def test_the_output_of_several_processes_comes_whole_into_the_log(program):
    code = "import sys\nfor i in range(2000): print('{name}', i)"
    one = program(code.format(name="first"), code.format(name="second"))
    with pytest.raises(CourseError, match="the launcher failed"):
        launch.run(one, ranks=1, limit=60)
    lines = one.log.read_text().splitlines()
    for name in ("first", "second"):
        assert [line for line in lines if line.startswith(name)] == [f"{name} {i}" for i in range(2000)]
