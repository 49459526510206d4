"""Where a deck's slides begin: cells stay with what they put out, no line stands alone, each slide has its title."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOM = 655  # pixels of a slide's height that may be filled
LINE_OR_TWO = 130  # pixels: less does not make a slide


def break_slides(pieces: list[NotebookNode]) -> list[NotebookNode]:
    """The pieces of a section with their slide types set: what begins a slide is "slide" or "subslide".

    Where the author began a slide without a heading, it goes on below the one before while there is room, unless that
    one asks for a guess. A piece has its height, its slide type, and ``keep`` where it belongs to the one before.
    """
    shown = [piece for piece in pieces if _kind(piece) != "notes"]
    first = _kind(shown[0])
    slides: list[list[list[NotebookNode]]] = []
    for part in _split(shown, is_start):
        runs = list(_split(part, lambda piece: not piece.metadata.get("keep")))
        goes_on = slides and not _has_heading(part) and not _asks(slides[-1])
        slides += _fill(runs, slides.pop() if goes_on else [])
    for before, after in pairwise(slides):
        alone = _height(after) < LINE_OR_TWO and not _has_heading(after[0])
        if alone and _height(before[:-1]) >= LINE_OR_TWO and _height([before[-1], *after]) <= ROOM:
            after.insert(0, before.pop())
    starts = {id(slide[0][0]) for slide in slides}
    for piece in shown:
        piece.metadata.slideshow["slide_type"] = "subslide" if id(piece) in starts else "-"
    shown[0].metadata.slideshow["slide_type"] = first if first == "slide" else "subslide"
    return list(_with_titles_and_notes(pieces))


def is_start(piece: NotebookNode) -> bool:
    """Whether a piece begins a slide."""
    return _kind(piece) in ("slide", "subslide")


def _fill(runs: list[list[NotebookNode]], slide: list[list[NotebookNode]]) -> list[list[list[NotebookNode]]]:
    """Runs of pieces laid on ``slide`` and on as many more as they need; a run too long for one is cut.

    The outcome of a guess begins a slide.
    """
    slides = [slide]
    for run in runs:
        for part in [run] if _height([run]) <= ROOM else [[piece] for piece in run]:
            asked = _asks(slides[-1])
            if (asked and "check.compare" in part[0].source) or (slides[-1] and _height([*slides[-1], part]) > ROOM):
                slides.append([])
            slides[-1].append(part)
    return slides


def _with_titles_and_notes(pieces: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The pieces with the section's title, small, on each slide that goes on, and with notes on each.

    Where a slide has none, they are the last words before it: they say what to look for.
    """
    from nbformat.v4 import new_markdown_cell

    title, words = "", ""
    for part in _split(pieces, is_start):
        notes = [piece.source for piece in part if _kind(piece) == "notes"]
        heading = _has_heading(part)
        if heading:
            title = re.sub(r"^#+ |[*`]", "", part[0].source)
        else:
            part[0].metadata.slideshow, kind = {"slide_type": "-"}, _kind(part[0])
            line = f'<div class="section">{title}</div>'
            yield new_markdown_cell(line, metadata={"slideshow": {"slide_type": kind}})
        yield from part
        if not notes and words:
            yield new_markdown_cell(words, metadata={"slideshow": {"slide_type": "notes"}})
        words = notes[-1].split("\n\n")[-1] if notes else words


def _kind(piece: NotebookNode) -> str:
    return piece.metadata.slideshow["slide_type"]


def _height(runs: list[list[NotebookNode]]) -> float:
    return sum(piece.metadata.get("height", 0) for run in runs for piece in run)


def _has_heading(pieces: list[NotebookNode]) -> bool:
    return pieces[0].cell_type == "markdown" and pieces[0].source.startswith("#")


def _asks(slide: list[list[NotebookNode]]) -> bool:
    """Whether a slide asks for a guess, whose outcome would stand below it."""
    return any(
        re.search(r"guess first|write down your guess|^guess_", piece.source, re.I) for run in slide for piece in run
    )


def _split(pieces: list[NotebookNode], begins: Callable[[NotebookNode], bool]) -> Iterator[list[NotebookNode]]:
    """Pieces in groups, each of which goes on until the next one begins."""
    group: list[NotebookNode] = []
    for piece in pieces:
        if group and begins(piece):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
