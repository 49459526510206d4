"""Slides, and copies for a class, from the very notebooks: complete, offline, and nothing beyond the edge."""

import html
import json
import re
import subprocess
import zipfile

import links
import nbformat
import numpy as np
import pytest
from conftest import CHROMIUM, NOTEBOOKS, ROOT

from authoring import classroom, slides
from authoring.pocket.corpus import read_reviews
from finetuning.evaluation.behaviour import MarkedText
from finetuning.workspace import LESSONS

MEASURE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const found = [];
  for (const slide of Reveal.getSlides()) {
    const {h, v} = Reveal.getIndices(slide);
    Reveal.slide(h, v || 0);
    const box = slide.getBoundingClientRect(), scale = Reveal.getScale();
    const shown = [...slide.querySelectorAll("*")].filter((part) => !part.closest("aside"));
    const edges = shown.map((part) => part.getBoundingClientRect()).filter((edge) => edge.width && edge.height);
    const pixels = (part) => parseFloat(getComputedStyle(part).fontSize);
    found.push({
      text: slide.innerText.trim().slice(0, 80),
      right: Math.max(...edges.map((edge) => (edge.right - box.left) / scale)),
      bottom: Math.max(...edges.map((edge) => (edge.bottom - box.top) / scale)),
      code: Math.min(99, ...shown.filter((part) => part.tagName == "PRE").map(pixels)),
      heading: !!slide.querySelector("h1, h2, h3"),
      title: !!slide.querySelector("h1, h2, h3, .section"),
      notes: (slide.querySelector("aside.notes") || slide).textContent.trim() && !!slide.querySelector("aside.notes"),
      pictures: shown.filter((part) => part.tagName == "IMG").map((part) => part.naturalWidth),
    });
  }
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 500));
</script></body>"""


def check_links(folder, root):
    """Every link of the pages leads to a page below ``root``, and to a place there; returns how many name a place."""
    pages = [path.read_text() for path in folder.glob("*.html")]
    targets = [link for page in pages for link in re.findall(r'<a [^>]*?href="([^":#]+(?:#[^"]*)?)"', page)]
    assert [target for target in targets if target.startswith("glossary.html")]
    assert links.dead_ends(root) == []
    return sum("#" in target for target in targets)


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    """The decks made from the sources alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNING_RUNS", str(tmp_path_factory.mktemp("none")))
        return slides.make_slides(tmp_path_factory.mktemp("slides"), "pocket")


def measured(deck):
    """Every slide of a deck as headless Chromium lays it out at 1280 x 720."""
    page = deck.with_name(f"measure-{deck.name}")
    page.write_text(deck.read_text().replace("</body>", MEASURE))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,807"]
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', shown, re.DOTALL)[1]))


def check_fit(paths):
    for deck in paths:
        found = measured(deck)
        first = nbformat.read(ROOT / "notebooks" / f"{deck.stem}.ipynb", as_version=4).cells[0].source
        assert 5 < len(found) <= int(re.search(r"Reading time (\d+) minutes", first)[1]), (
            deck.stem
        )  # one a minute at most
        for slide in found:
            assert slide["right"] <= 1281 and slide["bottom"] <= 720, (deck.stem, slide)
            assert slide["code"] >= 18, (deck.stem, slide)
            assert all(slide["pictures"]), (deck.stem, slide)
            assert slide["title"] and slide["notes"], (deck.stem, slide)
            assert slide["heading"] or slide["bottom"] > 120, (deck.stem, slide)  # a line or two are no slide


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_knows_its_place_on_the_slides(path):
    cells = nbformat.read(path, as_version=4).cells
    kinds = {cell.id: cell.metadata["slideshow"]["slide_type"] for cell in cells}
    assert set(kinds.values()) <= {"slide", "subslide", "-", "notes", "skip"}
    assert kinds[cells[0].id] == "slide" and kinds[f"{path.stem[:2]}-parameters"] == "skip"
    for cell in cells:
        if cell.source.startswith("## "):
            assert kinds[cell.id] == "slide" and (cell.metadata.get("notes") or cell.id.endswith("-close")), cell.id


def test_the_decks_need_no_network(decks):
    for deck in decks:
        page = deck.read_text()
        assert not re.search(r'<(script|img|link)[^>]+(src|href)="?(https?:)?//', page), deck.name
        assert "import mermaid" not in page and "require(" not in page.split("<main>")[-1]
        for target in re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', page):
            assert (deck.parent / target).is_file(), target
    assert (
        "MIT" not in decks[0].read_text()
        and "Permission is hereby granted" in (decks[0].parent / "reveal/LICENSE").read_text()
    )
    check_links(decks[0].parent, decks[0].parent)


def test_notes_hold_the_whole_text_and_the_time(decks):
    for deck, path in zip(decks, NOTEBOOKS, strict=True):
        page = deck.read_text()
        notes = html.unescape(
            re.sub(r"<[^>]+>|\s+", " ", " ".join(re.findall(r'<aside class="notes">(.*?)</aside>', page, re.DOTALL)))
        )
        words = re.sub(r"\W+", "", notes)
        for cell in nbformat.read(path, as_version=4).cells:
            kind = cell.metadata["slideshow"]["slide_type"]
            if cell.cell_type == "markdown" and kind != "skip":
                marks = ("!", "|", "<", "```", "#")
                told = slides.MINUTES.sub("", cell.source).splitlines()
                last = ([line for line in told if line and not line.startswith(marks)] or [told[0]])[-1]
                assert re.sub(r"\W+", "", re.sub(r"\]\(.*?\)|^(\d+\.|-) ", "", last)) in words, (cell.id, last)
        stated = int(re.search(r"Reading time (\d+) minutes", nbformat.read(path, as_version=4).cells[0].source)[1])
        timings = [int(seconds) for seconds in re.findall(r'<section[^>]* data-timing="(\d+)"', page)]
        assert f"to {stated} of {stated}." in notes
        assert abs(sum(timings) - 60 * stated) < len(timings) * 30 + 30


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (Debian: apt install chromium)")
def test_no_slide_of_the_sources_overflows(decks):
    check_fit(decks)


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (Debian: apt install chromium)")
def test_no_slide_of_a_run_overflows(pocket_run, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNING_RUNS", str(pocket_run[1].parent))
    made = slides.make_slides(tmp_path, "pocket")
    assert all("data:image/png" in deck.read_text() for deck in made[1:])
    check_fit(made)


def test_no_code_and_no_end_of_a_script_is_lost(decks, tmp_path, runs):
    """A lesson's code in its text, and the last line of a long file that a cell prints: the command that it is for."""
    assert "api.upload_folder(" in html.unescape(re.sub(r"<[^>]+>", "", decks[-1].read_text()))
    run_with_outputs(runs / "pocket" / "notebooks")
    copy = runs / "pocket" / "notebooks" / f"{LESSONS[1]}.ipynb"
    notebook = nbformat.read(copy, as_version=4)
    script = (ROOT / "src/finetuning/assets/launch/train.slurm").read_text()
    next(cell for cell in notebook.cells if cell.id == "01-samples").outputs[0].text = script
    nbformat.write(notebook, copy)
    deck = html.unescape(slides.make_slides(tmp_path, "pocket")[1].read_text())
    assert script.splitlines()[0] in deck and "more lines)" in deck and script.splitlines()[-1] in deck


def test_an_outcome_begins_a_slide_and_what_is_announced_stays_with_its_words():
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    def cell(make, source, name, kind="-", **more):
        return make(source, id=name, metadata={"slideshow": {"slide_type": kind}}, **more)

    lines = [new_output("stream", text="a line\n" * 12)]
    deck = slides.arrange(
        new_notebook(cells=[
            cell(new_markdown_cell, "## Title\n*2 minutes*\n\nA question. **Guess first:** how many?", "ask", "slide"),
            cell(new_code_cell, "guess_x = None", "01-guess-x"),
            cell(new_code_cell, "check.compare(guess_x, 1)", "01-x", outputs=lines),
            cell(new_markdown_cell, "It goes on, step by step, one after another: `" + "b " * 30 + "`.", "01-words"),
            cell(new_code_cell, "long\n" * 6, "01-long"),
            cell(new_markdown_cell, "The parts of it:\n\n| a | b |\n|---|---|\n" + "| c | d |\n" * 8, "01-table"),
        ])
    )  # fmt: skip
    shown, kinds = [], ("slide", "subslide")
    for part in deck.cells:
        if part.metadata.slideshow["slide_type"] in kinds:
            shown.append("")
        if part.metadata.slideshow["slide_type"] != "notes":
            shown[-1] += part.source + "\n"
    guess = next(i for i, slide in enumerate(shown) if "guess_x = None" in slide)
    assert "Guess first" in shown[guess] and "check.compare" not in shown[guess] and "check.compare" in shown[guess + 1]
    assert any("The parts of it:" in slide and "| c | d |" in slide for slide in shown)
    assert any("one after another.\n" in slide for slide in shown)  # not announcing what is left out


# Copies for a class


def test_learners_get_the_gaps_without_the_solutions(tmp_path, capsys):
    classroom.make_copies(tmp_path, "pocket")
    assert links.broken(tmp_path / "learner") == links.broken(tmp_path / "instructor") == []
    for lesson in LESSONS:
        copy = nbformat.read(tmp_path / "learner" / "notebooks" / f"{lesson}.ipynb", as_version=4)
        nbformat.validate(copy)
        source = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", as_version=4)
        text = "\n".join(cell.source for cell in copy.cells)
        prose = "\n".join(cell.source for cell in copy.cells if cell.cell_type == "markdown")
        assert "<details" not in prose and "</details>" not in prose and "Solution" not in text
        assert not re.search(r"folded (away )?below|solution (is|stands)", text), lesson  # what has been taken out
        assert not any(cell.get("outputs") or "notes" in cell.metadata for cell in copy.cells)
        gone = {cell.id for cell in source.cells} - {cell.id for cell in copy.cells}
        assert gone == {cell.id for cell in source.cells if "-solution-" in cell.id}
        for cell in copy.cells:
            if "-gap-" in cell.id:
                exec("\n".join(line for line in cell.source.splitlines() if not line.startswith("check.")))
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
            assert (tmp_path / "learner" / "notebooks" / picture).resolve().is_file()


def run_with_outputs(folder):
    """A run whose copy of lesson 01 has one output per code cell, and one cell that has changed since."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{LESSONS[1]}.ipynb", as_version=4)
    for i, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text=f"shown by {cell.id}\n")], i + 1
    changed = next(cell for cell in notebook.cells if cell.id == "01-balance")
    changed.source += "\nprint('older')"
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{LESSONS[1]}.ipynb")


def test_instructors_get_solutions_outputs_and_notes(tmp_path, runs):
    run_with_outputs(runs / "pocket" / "notebooks")
    zips = classroom.make_copies(tmp_path / "build", "pocket")
    copy = nbformat.read(tmp_path / "build" / "instructor" / "notebooks" / f"{LESSONS[1]}.ipynb", as_version=4)
    nbformat.validate(copy)
    cells = {cell.id: cell for cell in copy.cells}
    assert "<details" not in "\n".join(cell.source for cell in copy.cells)
    assert cells["01-solution-leaks"].source.startswith("**Solution**\n\n```python\n")
    assert "> **For the instructor.** " in cells["01-duplicates"].source
    assert cells["01-samples"].outputs[0]["text"] == "shown by 01-samples\n"
    assert not cells["01-balance"].outputs  # its source has changed since that run
    for path, audience in zip(zips, ("learner", "instructor"), strict=True):
        place = tmp_path / "build"
        files = {str(file.relative_to(place)) for file in (place / audience).rglob("*") if file.is_file()}
        assert {name for name in zipfile.ZipFile(path).namelist() if not name.endswith("/")} == files


def test_the_report_keeps_solutions_folded_and_holds_the_pictures(runs):
    from finetuning.course.report import write_report
    from finetuning.profiles import choose
    from finetuning.workspace import Workspace

    run_with_outputs(runs / "pocket" / "notebooks")
    write_report(Workspace("pocket", choose("pocket")))
    page = (runs / "pocket" / "notebooks" / f"{LESSONS[1]}.html").read_text()
    for inside in ("held", "the same label makes it worse"):  # a solution, and an answer of the quiz
        before, _, after = page.lower().rpartition(f">{inside}" if inside == "held" else inside)
        assert before.rfind("<details>") > before.rfind("</details>") and "</details>" in after
    assert "data:image/svg+xml;base64," in page and "../img" not in page and "This kernel lacks" not in page


def test_links_of_the_report_s_pages_lead_to_pages_and_words(runs):
    from finetuning.course.report import write_report
    from finetuning.profiles import choose
    from finetuning.workspace import Workspace

    run_with_outputs(runs / "pocket" / "notebooks")
    write_report(Workspace("pocket", choose("pocket")))
    assert check_links(runs / "pocket" / "notebooks", runs / "pocket") > 3
    page = (runs / "pocket" / "notebooks" / f"{LESSONS[1]}.html").read_text()
    assert "lesson 02" in page and "02_baselines" not in page.replace("roadmap", "")  # it has not run: no link to it


def test_slides_show_the_outputs_of_a_run_and_shorten_long_ones(tmp_path, runs):
    run_with_outputs(runs / "pocket" / "notebooks")
    copy = runs / "pocket" / "notebooks" / f"{LESSONS[1]}.ipynb"
    notebook = nbformat.read(copy, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    rows = "".join(f"<tr><td>row {i}</td></tr>" for i in range(40))
    table = nbformat.v4.new_output("display_data", {"text/html": f"<table>{rows}</table>"})
    cells["01-samples"].outputs.append(table)
    cells["01-clean-all"].outputs = [nbformat.v4.new_output("stream", text="a long line of words " * 500)]
    nbformat.write(notebook, copy)
    deck = slides.make_slides(tmp_path, "pocket")[1].read_text()
    assert "shown by 01-samples" in deck and "shown by 01-balance" not in deck
    assert 15 < len(re.findall(r"<td>row \d+", deck)) < 25
    assert "more lines)" in deck and deck.count("a long line of words") < 120


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (Debian: apt install chromium)")
def test_the_longest_review_with_marked_words_fits_on_a_slide(tmp_path, runs):
    run_with_outputs(runs / "pocket" / "notebooks")
    copy = runs / "pocket" / "notebooks" / f"{LESSONS[1]}.ipynb"
    notebook = nbformat.read(copy, as_version=4)
    words = max((review["text"] for review in read_reviews()), key=len).split()
    marked = MarkedText(words, np.ones(len(words)), "negative with probability 1.00")
    output = nbformat.v4.new_output("display_data", {"text/html": marked._repr_html_()})
    next(cell for cell in notebook.cells if cell.id == "01-samples").outputs = [output]
    nbformat.write(notebook, copy)
    deck = slides.make_slides(tmp_path, "pocket")[1]
    assert deck.read_text().count(f">{words[-1]}</span>") == 1
    assert all(slide["bottom"] <= 720 for slide in measured(deck))
