"""The report and the site of a run: whole, linked, offline, readable on a phone, in the dark and without eyes."""

import base64
import html
import io
import re
import zipfile
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from conftest import ROOT, finetuning
from links import dead_ends

from authoring import site
from finetuning.course.report import write_report
from finetuning.errors import CourseError
from finetuning.evaluation.behaviour import occlusion
from finetuning.plots import figure
from finetuning.profiles import choose
from finetuning.results import ResultRow, results_table
from finetuning.workspace import LESSONS, Workspace

ROW = ResultRow("02", "tfidf", 0.75, 0.7, 0.8, f1=0.74, n_test=4, predict_reviews_per_second=900.0)
SCREENS = ((1400, "light"), (1400, "dark"), (390, "light"), (390, "dark"))


def png():
    """A plot as a cell puts it out."""
    with io.BytesIO() as drawn:
        plot = figure("A plot")[0]
        plot.savefig(drawn, format="png")
        plt.close(plot)
        return nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(drawn.getvalue()).decode()})


def leave_copies(workspace, lessons, *more):
    """Copies of lessons as a run leaves them: each plot's cell has a plot, and the last code cell ``more`` outputs."""
    for lesson in lessons:
        notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in code:
            if "plots.plot_" in cell.source:
                cell.outputs = [png()]
        code[-1].outputs += more
        workspace.notebooks.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, workspace.notebooks / f"{lesson}.ipynb")


@pytest.fixture
def run(runs):
    """A run that stopped after lesson 02: two of its copies have outputs, one a plot, and there is a row."""
    workspace = Workspace("pocket", choose("pocket"))
    leave_copies(workspace, LESSONS[:3])
    workspace.add_rows(ROW)
    return workspace


def keep_answers(workspace, scores):
    """Four prepared test reviews, negative and positive in turn, and the fine-tuned model's scores of positive."""
    from datasets import ClassLabel, Dataset, DatasetDict

    from finetuning.files import seal

    texts = [f"review <{i}>" for i in range(4)]
    test = Dataset.from_dict({"text": texts, "label": [0, 1, 0, 1]})
    test = test.cast_column("label", ClassLabel(names=["negative", "positive"]))
    DatasetDict({"test": test}).save_to_disk(workspace.data / "reviews")
    seal(workspace.data / "reviews")
    workspace.add_rows(replace(ROW, lesson="03", method="trainer", accuracy=0.25, accuracy_low=0.1, accuracy_high=0.5))
    workspace.keep_scores("trainer", test=np.array([[1 - score, score] for score in scores]))


def pages_of(folder):
    """The pages of a site, without those that reveal.js brings."""
    return sorted(path for path in folder.rglob("*.html") if "reveal" not in path.parts)


def shown(page):
    """The words of a page."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)))


def test_the_report_says_what_the_run_measured_and_which_error_was_hardest(run):
    keep_answers(run, [0.6, 0.2, 0.97, 0.9])
    words = shown(write_report(run).read_text())
    assert "By this run, tfidf (0.750) is better than trainer (0.250)" in words
    assert (
        "Of 3 test reviews that trainer got wrong, it was surest of this one: positive, with a probability of 0.970"
        in (words)
    )
    assert "Its label is negative." in words and "review <2>" in words and "review <1>" not in words
    assert "predicts 900 reviews per second" in words
    assert re.search(r"01 Prepare the data \d+ minutes", words) and "03 Fine-tune" not in words
    assert "Memory by stage" not in words  # this run has not measured it


def test_the_report_of_a_run_without_results_says_so(run):
    run.results_file.unlink()
    words = shown(write_report(run).read_text())
    assert "No results yet." in words and "hardest error" not in words and "00 Welcome" in words


@pytest.mark.parametrize("scores", [[0.1, 0.9, 0.1, 0.9], [0.6]], ids=["none is wrong", "of other reviews"])
def test_no_error_is_shown_where_none_is_known(run, scores):
    keep_answers(run, scores)
    assert "hardest error" not in write_report(run).read_text()


def test_every_picture_has_words_and_plots_have_those_of_their_function(run):
    write_report(run)
    for path in (run.path / "report.html", *run.notebooks.glob("*.html")):
        pictures = re.findall(r"<img[^>]*>", path.read_text())
        assert pictures or path.stem == "glossary"
        for picture in pictures:
            assert re.search(r'alt="[^"]{20,}"', picture), (path.stem, picture[-200:])
    assert (
        'alt="Histogram of review lengths in tokens with the limit marked."'
        in (run.notebooks / f"{LESSONS[1]}.html").read_text()
    )


def test_the_site_is_whole_linked_and_fetches_nothing(run, tmp_path):
    front = site.make_site(tmp_path / "site", "pocket")
    folder = front.parent
    assert dead_ends(folder) == []
    for page in pages_of(folder):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|link)[^>]+(src|href)="?(https?:)?//', text), page
        assert ".ipynb" not in "".join(re.findall(r'href="[^"]*"', text)), page
        assert '<html lang="en">' in text and '"viewport"' in text, page
    words = shown(front.read_text())
    assert f"Made at commit {site.commit()}" in words and "cores of" in words
    linked = set(re.findall(r'href="([^"]+)"', front.read_text()))
    assert linked >= {"report.html", "slides/index.html", "learner.zip", "notebooks/glossary.html"}
    assert {f"notebooks/{lesson}.html" in linked for lesson in LESSONS[:3]} == {True}
    assert len(list((folder / "slides").glob("0*.html"))) == len(LESSONS)
    names = zipfile.ZipFile(folder / "learner.zip").namelist()
    assert f"learner/notebooks/{LESSONS[1]}.ipynb" in names and not any("instructor" in name for name in names)


def test_a_dead_link_or_picture_is_noticed(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html">b</a><a href="#x">x</a><img src="c.png"><a href="../d">d</a>')
    assert [target for _, target in dead_ends(tmp_path)] == ["b.html", "#x", "c.png", "../d"]
    (tmp_path / "a.html").write_text('<a href="a.html#x">x</a><p id="x"><a href="https://example.org">e</a>')
    assert dead_ends(tmp_path) == []


def test_a_site_wants_a_run(tmp_path, runs):
    with pytest.raises(CourseError, match="run make run first"):
        site.make_site(tmp_path / "site", "pocket")


def finish(workspace):
    """What lessons 03 to 07 add to a run that has had the first three, without their trainings."""
    stages = [f"deepspeed_zero{stage}" for stage in range(4)]
    held = {"world_size": 2, "bytes_per_rank": {"parameters": 2**20, "optimizer": 2**21}}
    workspace.add_rows(replace(ROW, lesson="03", method="trainer"))
    workspace.add_rows(*(replace(ROW, lesson="04", method=name, stage=int(name[-1]), **held) for name in stages))
    workspace.keep_scores("trainer", test=workspace.scores("tfidf"))
    random = np.random.default_rng(1)
    words = occlusion("a fine film", lambda texts: random.dirichlet([1, 1], len(texts)), ["negative", "positive"])
    shown = [results_table(workspace.results())._repr_html_(), words._repr_html_()]
    outputs = [nbformat.v4.new_output("display_data", {"text/html": page}) for page in shown]
    columns = "\n".join(f"stage {i}      {'1.0 MiB   ' * 20}" for i in range(3))
    leave_copies(workspace, LESSONS[3:], *outputs, nbformat.v4.new_output("stream", text=columns))


@pytest.mark.soak
def test_every_page_can_be_used_by_everybody(tmp_path, browser):
    """Each page of a whole site: no fault found by axe (headings, words, contrast, labels), none wider than a phone."""
    from axe_playwright_python.sync_playwright import Axe

    done = finetuning("run", "--lessons", "00,01,02", runs=tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNING_RUNS", str(tmp_path / "runs"))
        finish(Workspace("pocket", choose("pocket")))
        folder = site.make_site(tmp_path / "site", "pocket").parent
    words = shown((folder / "report.html").read_text())
    assert "Memory by stage" in words and "The hardest error" in words
    assert {page.stem for page in (folder / "notebooks").glob("*.html")} == {*LESSONS, "glossary"}
    found = []
    for width, scheme in SCREENS:
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        for page in pages_of(folder):
            deck = "Reveal.initialize" in page.read_text()
            if deck and (width, scheme) != SCREENS[0]:
                continue  # a deck has one look and one size
            tab.goto(page.as_uri() + ("?print-pdf" if deck else ""))  # for print a deck shows all its slides
            if deck:
                tab.wait_for_selector(".pdf-page")
                tab.evaluate(
                    "document.querySelectorAll('[aria-hidden]').forEach((x) => x.removeAttribute('aria-hidden'))"
                )
            tab.evaluate("document.querySelectorAll('details').forEach((x) => x.open = true)")
            where = f"{page.relative_to(folder)}, {width} pixels, {scheme}"
            for fault in Axe().run(tab).response["violations"]:
                found.append(f"{where}: {fault['help']}: {fault['nodes'][0]['target']}")
            if not deck and tab.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"{where}: wider than the screen")
        tab.close()
    assert found == []
