"""The minutes that the lessons announce, from one formula: ``python -m authoring minutes``.

It writes them under every heading, into every lesson's first cell and into the README's table of lessons.
"""

import re

import nbformat

from finetuning.files import write_atomically
from finetuning.workspace import LESSONS, home

# What a newcomer needs, in minutes: for a word (170 a minute, tables at twice the pace), for a line of code (20 a
# minute), for what a cell shows, for an exercise with its check, for a question of the quiz. Set so that they give what
# newcomers took for lessons 03, 04 and 07.
WORD, LINE, OUTPUT, EXERCISE, QUESTION = 1 / 170, 1 / 20, 1 / 8, 3, 0.6
HEADING = re.compile(r"^(##+ .*)\n\*\d+ minutes?\*$", re.MULTILINE)
STATED = re.compile(r"Reading time \d+ minutes")
SKIPPED = re.compile("-gap-|-guess-|-quiz-|-setup|-parameters|-imports")  # code that nobody reads or looks at


def announced(notebook: nbformat.NotebookNode) -> tuple[int, list[int]]:
    """What a lesson should announce: the minutes in all, and those of its sections in their order.

    The minutes that its cells run, by the first cell, are spread over the sections by their number of cells that show
    something.
    """
    sections = [0.0]
    shown = [0]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and HEADING.search(cell.source):
            sections.append(EXERCISE if "-exercise-" in cell.id else 0.0)
            shown.append(0)
        sections[-1] += _needed(cell)
        shown[-1] += cell.cell_type == "code" and not SKIPPED.search(cell.id)
    run = re.findall(r"cells run in (\d+) minute", notebook.cells[0].source)
    waiting = int(run[0]) / sum(shown)
    # What stands before the first heading of a section belongs to it.
    sections[1], shown[1] = sections[0] + sections[1], shown[0] + shown[1]
    minutes = [max(1, round(need + waiting * count)) for need, count in zip(sections[1:], shown[1:], strict=True)]
    return sum(minutes), minutes


def _needed(cell: nbformat.NotebookNode) -> float:
    """The minutes that a cell takes to read, its exercise apart."""
    if cell.cell_type == "code":
        return 0.0 if SKIPPED.search(cell.id) else LINE * len(cell.source.splitlines()) + OUTPUT
    if "-solution-" in cell.id:
        return 0.0
    text = re.sub(r"<details>.*?</details>|!\[.*?\]\(.*?\)|\]\(.*?\)", "", cell.source, flags=re.DOTALL)
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    words = len(re.findall(r"[\w'`-]+", text)) - len(re.findall(r"[\w'`-]+", tables)) / 2
    questions = len(re.findall(r"^\d+\. ", text, re.MULTILINE)) if cell.id.endswith("-quiz") else 0
    return WORD * words + QUESTION * questions


def announce(notebook: nbformat.NotebookNode) -> None:
    """Write what ``announced`` says into the lesson's headings and its first cell."""
    total, sections = announced(notebook)
    left = iter(sections)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = HEADING.sub(lambda found: f"{found[1]}\n*{_words(next(left))}*", cell.source)
    first = notebook.cells[0]
    first.source = STATED.sub(f"Reading time {_words(total)}", first.source)


def _words(minutes: int) -> str:
    return f"{minutes} minute{'s' if minutes != 1 else ''}"


def main(arguments: list[str]) -> None:
    """Write the minutes into all lessons and into the README."""
    readme, totals = (home() / "README.md").read_text(encoding="utf-8"), []
    for lesson in LESSONS:
        path = home() / "notebooks" / f"{lesson}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        announce(notebook)
        write_atomically(path, nbformat.writes(notebook) + "\n")
        totals.append(announced(notebook)[0])
        readme = re.sub(rf"({lesson}\.ipynb\) \|[^|]*\|) \d+ minutes", rf"\g<1> {totals[-1]} minutes", readme)
        print(f"{lesson}: {totals[-1]} minutes")
    readme = re.sub(r"(\| all \|[^|]*\|) \d+ minutes", rf"\g<1> {sum(totals)} minutes", readme)
    readme = re.sub(r"\d+ minutes of reading", f"{sum(totals)} minutes of reading", readme)
    write_atomically(home() / "README.md", readme)
