"""Delimited text (CSV and its kin), record by record: its beginning tells how it is written, the rest is checked."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

LONGEST_CELL = 2**24  # characters; a longer one is taken for a quote that was never closed
FEW = 20  # a column whose cells have no more different forms than this shows what a row looks like
STRAY = 'a quote (") opens here and swallows what follows; put the whole text in quotes, with "" for a quote inside it'
WRONG = {
    "unexpected end": "a quote opens here and is never closed; the rest of the file is inside it",
    "field limit": "a text of many million characters, as where a quote is never closed",
}  # what csv.Error says -> what the reader is told

Record = tuple[int, list[str], str]  # the number of its first line, its cells, what is wrong with it


def read_delimited(lines: Iterator[str], delimiters: str, text_of: Callable) -> tuple[list[str], Iterator[Record]]:
    """The column names and the records below them; no names where the file does not begin with any.

    Of the ``delimiters`` that one is taken by which the first line has a column of texts (``text_of``). Quotes within
    quotes are doubled, or escaped where the beginning of the file can be read further that way; between tabs they are
    ordinary characters where most of them enclose no cell.
    """
    csv.field_size_limit(LONGEST_CELL)
    sample = list(islice(lines, 1000))
    if sample and (named := re.fullmatch(r'"?sep=(.)"?\s*', sample[0])):  # as Excel names the delimiter
        sample[0], delimiters = "\n", named[1]
    heads = {one: next(_records(sample, {"delimiter": one}), (0, [], ""))[1] for one in delimiters}
    delimiter = max(heads, key=lambda one: (text_of(heads[one]) is not None, len(heads[one])))
    head = heads[delimiter]
    beside = [i for i, column in enumerate(head) if column != text_of(head)]
    forms: list[dict[str, Any]] = [{"delimiter": delimiter}]
    if any('\\"' in line for line in sample):
        forms.append({"delimiter": delimiter, "escapechar": "\\", "doublequote": False})
    if delimiter == "\t":
        rows = [line.rstrip("\r\n").split("\t") for line in sample if line.strip()]
        opened = [cell for row in rows for cell in row if cell.startswith('"')]
        enclosed = [cell for cell in opened if re.fullmatch('"([^"]|"")*"', cell)]
        if 2 * len(enclosed) < len(opened) and all(len(row) == len(head) for row in rows):
            forms = [{"delimiter": delimiter, "quoting": csv.QUOTE_NONE}]

    def reach(form: dict[str, Any]) -> int:
        """The line up to which the beginning is read well."""
        return next((number for number, _, wrong in _records(sample, form, len(head), beside) if wrong), 1001)

    records = _records(chain(sample, lines), max(forms, key=reach), len(head), beside)
    next(records, None)  # the column names
    return head, records


def _records(lines: Iterable[str], form: dict, columns: int = 0, beside: Iterable[int] = ()) -> Iterator[Record]:
    """The records of a file of so many columns, those ``beside`` the text by their numbers; empty lines are left out.

    A record of several lines, more than one of which could be a row by itself, is no text with line breaks: a stray
    quote has swallowed rows. It ends with its first line, and the others are read again.
    """
    raw: list[str] = []  # the lines of a record
    again: list[str] = []  # those to be read again, the next one last
    source = iter(lines)

    def feed() -> Iterator[str]:
        while line := again.pop() if again else next(source, ""):
            raw.append(line)
            yield line

    known = {i: {"0", "pos", "neg", "positive", "negative"} for i in beside}  # forms of the cells that columns hold
    number, reader = 1, csv.reader(feed(), strict=True, **form)
    while True:
        raw.clear()
        cells, problem = [], ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = next((ours for theirs, ours in WRONG.items() if theirs in str(error)), STRAY)
        for i in [*known] if len(cells) == columns else ():
            known[i].add(_form(cells[i]))
            if len(known[i]) > FEW:
                del known[i]
        if len(raw) > 1 and not problem:
            alone = csv.reader(raw, delimiter=form["delimiter"], quoting=csv.QUOTE_NONE)
            rows = [row for row in alone if len(row) == columns and all(_form(row[i]) in known[i] for i in known)]
            problem = STRAY if known and len(rows) > 1 else ""
        if problem == STRAY:
            again.extend(reversed(raw[1:]))
        if len(cells) > columns > 0:
            problem = problem or "more cells than columns; put texts that hold the delimiter in double quotes"
        if cells or problem:
            yield number, cells, problem
        number += 1 if problem == STRAY else len(raw)


def _form(cell: str) -> str:
    """A short cell with 0 for each number in it; "" for a long one."""
    return re.sub(r"\d+", "0", cell.strip(' "').lower()) if len(cell) < 40 else ""
