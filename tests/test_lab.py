"""JupyterLab as ``make lab`` opens it, driven in a real browser: pictures, a lesson to its end, answers, solutions."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import ROOT
from processes import wait_until

from finetuning.workspace import LESSONS

PORT = 8937
SHOWN = ".jp-Notebook .jp-Cell"
SOLUTION = """def leaks(train, test):
    known = {data.fingerprint(text) for text in test}
    return sum(data.fingerprint(text) in known for text in train)


check.leaks(leaks)"""

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """A JupyterLab of its own, by the command of ``make lab`` on a copy of the course: open a notebook, get its tab."""
    place = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", place / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "img", place / "img")
    shutil.copy(ROOT / "pyproject.toml", place)
    line = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True).stdout
    command = re.search(r"jupyter (lab .*)", line)[1].replace('"', "").split()
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter", *command, "--no-browser", "--allow-root", f"--port={PORT}",
         "--IdentityProvider.token=t", "--ServerApp.port_retries=0"],
        cwd=place, start_new_session=True, stdout=(place / "said.txt").open("w"), stderr=subprocess.STDOUT,
        env={**os.environ, "FINETUNING_RUNS": str(place / "runs"), "JUPYTER_CONFIG_DIR": str(place / "config")},
    )  # fmt: skip
    assert wait_until(answers, 120, every=0.5), (place / "said.txt").read_text()
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    tab.set_default_timeout(120_000)

    def open_lesson(name):
        tab.goto(f"http://127.0.0.1:{PORT}/lab/tree/notebooks/{name}.ipynb?token=t&reset")
        tab.wait_for_selector(SHOWN)
        return tab

    yield open_lesson
    tab.close()
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def answers():
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api?token=t").status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def cell(tab, words):
    """The cell whose source holds these words, scrolled into view: JupyterLab draws only what is near the window."""
    panel = tab.locator(".jp-WindowedPanel-outer")
    found = tab.locator(SHOWN, has_text=words).first
    for step in range(200):
        if found.count():
            found.scroll_into_view_if_needed()
            return found
        panel.evaluate("(panel, step) => { panel.scrollTop = step * 600 }", step)
        tab.wait_for_timeout(150)
    raise AssertionError(f"no cell with {words!r}")


def run_cell(tab, words):
    """Run a cell and wait for its end; returns its text with its outputs."""
    found = cell(tab, words)
    found.click()
    tab.keyboard.press("Control+Enter")
    tab.wait_for_function("!document.querySelector('.jp-Notebook').innerText.includes('[*]')")
    return found.inner_text()


def write_cell(tab, words, source):
    """Put a source in place of a cell's."""
    cell(tab, words).locator(".cm-content").click()
    tab.keyboard.press("Control+a")
    tab.keyboard.insert_text(source)


@pytest.mark.parametrize("lesson", [*LESSONS, "glossary"])
def test_every_picture_of_a_lesson_loads_and_none_asks_about_news(lab, lesson):
    """Each lesson and the glossary in JupyterLab: all pictures load, no question about news."""
    tab = lab(lesson)
    wanted = len(re.findall(r"!\[.*?\]\(\.\./img/", (ROOT / "notebooks" / f"{lesson}.ipynb").read_text()))
    seen = {}
    panel = tab.locator(".jp-WindowedPanel-outer")
    for step in range(200):
        for name, width in tab.evaluate(
            "[...document.querySelectorAll('.jp-Notebook img')].map((x) => [x.alt, x.naturalWidth])"
        ):
            seen[name] = max(width, seen.get(name, 0))
        at, end = panel.evaluate(
            "(p, step) => { p.scrollTop = step * 700; return [p.scrollTop + p.clientHeight, p.scrollHeight] }", step
        )
        tab.wait_for_timeout(120)
        if at >= end - 5 and len(seen) >= wanted and all(seen.values()):
            break
    assert len(seen) == wanted and all(seen.values()), seen
    assert tab.locator("text=Jupyter news").count() == 0


def test_a_lesson_runs_to_its_end(lab):
    """Lesson 00, by "Run All Cells": no error, and the last cell has run."""
    tab = lab(LESSONS[0])
    tab.click("text=Run >> nth=0")
    tab.click("text=Run All Cells")
    last = cell(tab, "This run keeps its files in")
    last.locator(".jp-OutputArea-output", has_text="results.json").wait_for(timeout=300_000)
    assert tab.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0


def test_answers_are_answered_and_a_solution_unfolds(lab):
    """An exercise of lesson 01: open, wrong, right; a quiz wrong; the solution unfolds by a click; progress is kept."""
    tab = lab(LESSONS[1])
    for words in ('profile = "pocket"', "from finetuning import"):
        run_cell(tab, words)
    assert "This gap is still open" in run_cell(tab, "check.leaks(leaks)")
    write_cell(tab, "check.leaks(leaks)", "check.leaks(lambda train, test: 0)")
    assert "Not yet: " in run_cell(tab, "check.leaks(lambda")
    write_cell(tab, "check.leaks(lambda", SOLUTION)
    assert "Right. " in run_cell(tab, "check.leaks(leaks)")
    write_cell(tab, 'check.quiz("01"', 'check.quiz("01", "a a a a a"); check.progress()')
    said = run_cell(tab, 'check.quiz("01"')
    assert "of 5 right" in said and re.search(r"01 +1 of 5 done", said)
    folded = cell(tab, "Solution").locator("details").first
    inside = folded.locator("pre").first
    assert not inside.is_visible()
    folded.locator("summary").click()
    assert inside.is_visible() and "fingerprint" in inside.inner_text()
