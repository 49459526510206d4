"""Shared by the tests: a tiny T5 made on the fly, runs in a temporary folder, one real run of the whole course.

Two workers of pytest-xdist share the tests out: the files that look at the one run of the whole course go to the same
one, the others file by file. What measures the clock is marked ``alone`` and runs after them.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))  # the lessons
IMDB = ROOT.parent / "shared" / "data" / "imdb"
needs_imdb = pytest.mark.skipif(
    not IMDB.is_dir(), reason="real IMDb reviews are not beside this clone (../shared/data/imdb)"
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

COURSE = ("test_course", "test_summaries", "test_slides", "test_repository")  # all that use ``pocket_run``
# These files first, so that two workers end at about the same time.
LONG = ("test_course", "test_small", "test_survival", "test_deepspeed", "test_launch_assets")

# No test may reach the network; those about the Hub use a stand-in and a closed port of this machine.
os.environ["HF_HUB_OFFLINE"] = "1"


def finetuning(*arguments, runs, **environment):
    """``python -m finetuning …`` with its runs in a folder of the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "finetuning", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "FINETUNING_RUNS": str(runs), **environment},
        capture_output=True,
        text=True,
        timeout=3600,  # a guard against hanging; a slow processor takes a third of it for the whole course
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "the course" if Path(file).stem in COURSE else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    for item in items:
        if "pocket_run" in item.fixturenames:
            assert item.path.stem in COURSE, f"{item.path} uses pocket_run, and would run the whole course once more"
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("soak"):
            proves = item.function.__doc__.splitlines()[0]
            item.user_properties.append(("proves", proves + item.name.removeprefix(item.originalname)))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_terminal_summary(terminalreporter):
    """The table of faults, and what the soak proved: a line for each of its tests."""
    faults, proved = [], []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            noted = dict(getattr(report, "user_properties", ()))  # a file that cannot be read has none
            if "fault" in noted:
                faults.append(noted["fault"])
            if "proves" in noted:
                why = report.longrepr[2].removeprefix("Skipped: ") if outcome == "skipped" else ""
                proved.append(f"{outcome:8}{report.duration:6.0f} s  {noted['proves']} {why}")
    for title, lines in (("each of these faults was caused and answered", faults), ("the soak", proved)):
        if lines:
            terminalreporter.section(title)
            terminalreporter.write("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def none_outlives_its_test():
    """A test that fails in the middle leaves no run behind, which would slow all others down."""
    from processes import STARTED

    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its kernel notices and ends


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A ``runs`` folder of the test's own."""
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def random_t5(folder, width, last_norm=1.0):
    """A folder with a T5 of random weights and pocket T5's tokenizer; a larger ``last_norm`` learns sooner."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from finetuning.profiles import POCKET_T5

    tokenizer = AutoTokenizer.from_pretrained(POCKET_T5)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=width // 2, num_heads=2, d_ff=2 * width, num_layers=1,
        num_decoder_layers=1, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    model.decoder.final_layer_norm.weight.data.fill_(last_norm)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a T5 of some thousand weights."""
    return random_t5(tmp_path_factory.mktemp("tiny"), 16)


@pytest.fixture(scope="session")
def pocket_run(tmp_path_factory):
    """The whole course on the shipped defaults, executed once: (finished process, the run's folder)."""
    runs = tmp_path_factory.mktemp("pocket") / "runs"
    return finetuning("run", runs=runs), runs / "pocket"


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, driven by Playwright; both come from elsewhere (``make soak`` installs Playwright)."""
    reason = "Playwright is not installed (make soak does it)"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    pytest.importorskip("axe_playwright_python", reason=reason)
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *quiet])
        yield chromium
        chromium.close()
