"""The lessons as slides: ``make slides`` (``python -m authoring slides [run]``).

reveal.js through nbconvert, made from the very notebooks by their cells' ``slideshow`` metadata, with the outputs of a
run where there is one. A slide shows the heart of a text; the whole text is in the speaker's notes (key S), with the
time. The pages need no network.
"""

from __future__ import annotations

import base64
import html
import math
import re
import shutil
import struct
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authoring.classroom import FOLDED, lesson_with_outputs
from authoring.pagination import ROOM, break_slides, is_start
from finetuning.course.report import describe_plots, link_pages, notebook_page, title_of
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.profiles import ASSETS
from finetuning.workspace import LESSONS, home

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).parent / "assets" / "nbconvert"
MINUTES = re.compile(r"^\*(\d+) minutes?\*$", re.MULTILINE)
NEEDED = (
    "dist/reveal.js",
    "dist/reveal.css",
    "dist/theme/white.css",
    "dist/theme/fonts/source-sans-pro",
    "plugin/notes",
)


def make_slides(folder: Path, run: str) -> list[Path]:
    """Write a deck per lesson, an index and reveal.js itself into ``folder``; returns the paths of the decks."""
    import nbformat
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(
        template_name="course", extra_template_basedirs=[str(TEMPLATES)], reveal_url_prefix="reveal",
        reveal_theme="white", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True,
    )  # fmt: skip
    _copy_reveal(folder / "reveal")
    decks, titles = [], []
    for lesson in LESSONS:
        notebook = lesson_with_outputs(lesson, run)
        describe_plots(notebook)
        deck = arrange(notebook)
        titles.append(title_of(lesson, deck))
        page, _ = exporter.from_notebook_node(deck, resources={"metadata": {"path": str(home()), "name": titles[-1]}})
        decks.append(folder / f"{lesson}.html")
        write_atomically(decks[-1], link_pages(page, [*LESSONS, "glossary"]))
    glossary = nbformat.read(home() / "notebooks" / "glossary.ipynb", as_version=4)
    page = notebook_page(glossary, "Glossary", '<a href="index.html">slides</a>', list(LESSONS))
    write_atomically(folder / "glossary.html", page)
    links = [(f"{lesson}.html", title) for lesson, title in zip(LESSONS, titles, strict=True)]
    write_atomically(folder / "index.html", front_page("slides.html.j2", decks=[*links, ("glossary.html", "Glossary")]))
    return decks


def front_page(template: str, **shown: Any) -> str:
    """A page of links, in the looks of the report, from a template in this package's assets."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader([TEMPLATES.parent, ASSETS]), autoescape=True)
    return environment.get_template(template).render(**shown)


def _copy_reveal(folder: Path) -> None:
    """reveal.js out of the package sphinx-revealjs, which ships it; the package itself is not imported."""
    package = find_spec("sphinx_revealjs")
    if package is None or package.submodule_search_locations is None:
        raise CourseError("The slides need sphinx-revealjs, which holds reveal.js; run make setup.")
    source = Path(package.submodule_search_locations[0]) / "_static" / "revealjs"
    for name in ("LICENSE", *NEEDED):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, dirs_exist_ok=True)
        else:
            shutil.copy(source / name, target)


def arrange(notebook: NotebookNode) -> NotebookNode:
    """The notebook cut into cells that fit on slides.

    A cell that would not fit any more begins a slide below the last.
    """
    sections: list = []  # one per slide of type "slide" or exercise: [minutes, [cells]]
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "-")
        if kind == "skip":
            continue
        announced = MINUTES.search(cell.source) if cell.cell_type == "markdown" else None
        if kind == "slide" or announced or not sections:
            sections.append([int(announced[1]) if announced else 0, []])
        pieces = _pieces(cell, kind)
        before = sections[-1][1][-1:]
        words = before and before[0].cell_type == "markdown" and before[0].metadata.get("height", 200) < 200
        if cell.cell_type == "code" and kind == "-" and "-guess-" not in cell.id and words:
            pieces[0].metadata["keep"] = True  # with the words before it
        sections[-1][1].extend(pieces)
    total, past = sum(minutes for minutes, _ in sections), 0
    cells: list = []
    for minutes, pieces in sections:
        if minutes:
            pieces.insert(1, _notes(f"*Minutes {past} to {past + minutes} of {total}.*"))
            past += minutes
        broken = break_slides(pieces)
        starts = [piece for piece in broken if is_start(piece)]
        for piece in starts:
            piece.metadata.slideshow["data"] = {"timing": round(60 * minutes / len(starts))}
        for piece in broken:
            piece.metadata.pop("height", None)
        cells += broken
    notebook.cells = cells
    return notebook


def _pieces(cell: NotebookNode, kind: str) -> list[NotebookNode]:
    """A cell as smaller ones with their heights in pixels.

    The first has the cell's slide type, the whole text goes to the notes.
    """
    if cell.cell_type == "code":
        return _code_pieces(cell, kind)
    plain = MINUTES.sub("", FOLDED.sub(r"\n\n\2", cell.source)).strip()
    if kind == "notes":
        return [_notes(plain)]
    shown = [_markdown(text, height) for text, height in _slide_blocks(FOLDED.sub("", cell.source))]
    shown[0].metadata.slideshow["slide_type"] = kind
    for before, after in pairwise(shown):  # a heading, or words that announce something, are not left behind
        after.metadata["keep"] = before.source.startswith("#") or before.source.endswith(":")
    notes = [_notes(cell.metadata["notes"])] if "notes" in cell.metadata else []
    return [shown[0], *notes, _notes(plain), *shown[1:]]


def _cell(make: Callable[..., NotebookNode], source: str, kind: str, height: float) -> NotebookNode:
    return make(source, metadata={"slideshow": {"slide_type": kind}, "height": height})


def _markdown(text: str, height: float) -> NotebookNode:
    from nbformat.v4 import new_markdown_cell

    return _cell(new_markdown_cell, text.replace("](../img/", "](img/"), "-", height)


def _notes(text: str) -> NotebookNode:
    from nbformat.v4 import new_markdown_cell

    return _cell(new_markdown_cell, re.sub(r"!\[(.*?)\]\(.*?\)", r"(Picture: \1)", text), "notes", 0)


def _slide_blocks(text: str) -> Iterator[tuple[str, float]]:
    """What of a text a slide shows.

    (Markdown, height) for its heading, first sentences, questions, lists, tables and pictures.
    """
    has_text, heading = False, ""
    for block in re.findall(r"```.*?```|(?:(?!\n\s*\n|```).)+", MINUTES.sub("", text).strip(), re.DOTALL):
        block = block.strip()
        if block.startswith("#"):
            heading, _, block = block.partition("\n")
            yield heading, 105 if heading.startswith("# ") else 75
            block = block.strip()
        if not block:
            continue
        if block.startswith("```"):
            yield block, len(block.splitlines()) * 27
        elif block.startswith("!["):
            yield block, _picture_height(block) + 10
        elif block.startswith("|"):
            yield from _table(block.splitlines())
        elif re.match(r"\d+\. .*\n +- ", block):  # questions of a quiz
            for question in re.split(r"\n(?=\d+\. )", block):
                yield question, sum(_lines(line, 92) for line in question.splitlines()) * 42 + 20
        elif re.match(r"(- |\d+\. )", block):
            yield block, sum(_lines(line, 88) * 41 + 4 for line in block.splitlines()) + 12
        else:
            asked = re.search(r"\*\*(?:Guess first|Write down your guess).*", block)
            if heading.startswith("### Exercise"):
                kept = block
            else:
                kept = "" if has_text else _first_sentences(block[: asked.start()] if asked else block, 30)
                kept = f"{kept} {asked[0]}".strip() if asked else kept
            has_text = True
            if kept:
                yield kept, _lines(kept, 92) * 41 + 12


def _first_sentences(paragraph: str, words: int) -> str:
    """The first sentence of a paragraph, and the next ones as long as they stay within so many words."""
    sentences = re.split(r"(?<=[.!?:])\s+(?=[A-Z*`\[])", paragraph.replace("\n", " "))
    kept = sentences[:1]
    for sentence in sentences[1:]:
        length = len(" ".join(kept).split())
        if length >= 8 and length + len(sentence.split()) > words:
            break
        kept.append(sentence)
    if kept != sentences and kept[-1].endswith(":"):  # what it announces is left out
        kept = kept[:-1] or [f"{kept[0][:-1]}."]
    return " ".join(kept)


def _table(lines: list[str]) -> Iterator[tuple[str, float]]:
    """A table in pieces that fit on one slide, each with the head line."""
    head = lines[:2]
    part: list[str] = []
    filled = 40
    for row in lines[2:]:
        height = _lines(row, 115 if row.count(" | ") < 2 else 95) * 32 + 9  # the more columns, the sooner a cell wraps
        if filled + height > ROOM - 120:
            yield "\n".join([*head, *part]), filled
            part, filled = [], 40
        part.append(row)
        filled += height
    yield "\n".join([*head, *part]), filled


def _lines(text: str, width: int) -> int:
    shown = re.sub(r"\]\(.*?\)", "]", text)
    return max(1, math.ceil(len(shown) / width))


def _picture_height(block: str) -> float:
    """The height of a picture on the slide: as wide as the slide, at most 400 pixels high."""
    address = re.findall(r"\]\((.*?)\)", block)[0]
    svg = (home() / "notebooks" / address).read_text()
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    return min(400, height * 1.34, 1190 * height / width)


def _code_pieces(cell: NotebookNode, kind: str) -> list[NotebookNode]:
    from nbformat.v4 import new_code_cell

    lines = sum(_lines(line, 97) for line in cell.source.splitlines())
    pieces = [_cell(new_code_cell, cell.source, kind, lines * 27 + 26)]
    if cell.outputs and "remove-input" in cell.metadata.get("tags", []):
        pieces = []
    height: float
    for output in _joined(cell.outputs):
        data = output.get("data", {})
        free = ROOM - 20 - sum(piece.metadata.height for piece in pieces)
        if output.output_type == "stream":
            shown = _shorten(output.text, int(min(18, free // 24)) if free // 24 >= 10 else 18)
            output.text, height = "\n".join(shown), len(shown) * 24 + 16
        elif "image/png" in data:
            height = _png_height(data["image/png"])
            height = output.metadata["room"] = free if 400 <= free < height else height
        else:
            output, height = _html_output(output)
        piece = _cell(new_code_cell, cell.source, "-" if pieces else kind, height)
        piece.outputs, piece.metadata["transient"] = [output], {"remove_source": True}
        piece.metadata["keep"] = bool(pieces)
        pieces.append(piece)
    return pieces


def _html_output(output: NotebookNode, rows: int = 20) -> tuple[NotebookNode, float]:
    """A table, or a text with marked words, as an output with its height.

    Many rows or columns and long texts are set in small type, rows beyond ``rows`` left out.
    """
    from nbformat.v4 import new_output

    shown = output.get("data", {}).get("text/html", "")
    lines = re.findall(r"<tr.*?</tr>", shown, re.DOTALL)
    for line in lines[rows + 1 :]:
        shown = shown.replace(line, "")
    lines = lines[: rows + 1]
    text = html.unescape(re.sub("<.*?>", "", shown))
    columns = max((line.count("<t") - 1 for line in lines), default=0)
    if len(lines) <= 14 and columns <= 9 and (lines or len(text) <= 300):
        return output, 38 * (len(lines) or _lines(text, 90)) + 20
    small = f'<div class="small">{shown}</div>'
    height = 26 * len(lines) + 50 if lines else 30 * _lines(text, 90) + 30
    return new_output("display_data", data={"text/html": small}), height


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell, with text that follows on text made one."""
    from nbformat.v4 import new_output

    joined = []
    for output in outputs:
        data = output.get("data", {})
        text = output.get("text") or (data.get("text/plain", "") if set(data) == {"text/plain"} else "")
        if not text:
            joined.append(output)
        elif joined and joined[-1].output_type == "stream":
            joined[-1].text += "\n" + text.strip("\n") if not joined[-1].text.endswith("\n") else text
        else:
            joined.append(new_output("stream", text=text))
    return joined


def _png_height(encoded: str) -> float:
    """The height of a plot on the slide: its own, at most 600 pixels and as wide as the slide."""
    width, height = struct.unpack(">II", base64.b64decode(encoded)[16:24])
    return min(600, height, 1190 * height / width) + 10


def _shorten(text: str, lines: int = 18, width: int = 110) -> list[str]:
    """The first and the last lines of a long output, wrapped as the slide will show them."""
    wrapped = [
        part
        for line in text.rstrip().splitlines()
        for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]
    ]
    if len(wrapped) <= lines:
        return wrapped
    left = f"... ({len(wrapped) - lines + 1} more lines)"
    return [*wrapped[: lines // 2], left, *wrapped[-(lines - 1) // 2 :]]


def main(arguments: list[str]) -> None:
    """Make the decks in ``build/slides/``, with the outputs of the run that is named (else ``pocket``)."""
    for path in make_slides(home() / "build" / "slides", *(arguments or ["pocket"])):
        print(path)
