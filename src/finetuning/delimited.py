"""Delimited text (CSV and its kin), record by record: its beginning tells how it is written, the rest is checked."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

LONGEST_CELL = 2**24  # characters; a longer one is taken for a quote that was never closed
SAMPLE = 2**18  # characters, by which the form of a file is told
FEW = 20  # a column of no more different forms is one by which a row is known
STRAY = (
    'a quote (") opens here and swallows what follows; put the text in quotes as a whole, with "" for a quote inside it'
)
WRONG = {
    "unexpected end": "a quote opens here and is never closed; the rest of the file is inside it",
    "field limit": "a text of many million characters; is a quote never closed?",
}  # what csv.Error says -> what we say

Record = tuple[int, list[str], str]  # the number of its first line, its cells, what is wrong with it


def read_delimited(
    lines: Iterator[str], delimiters: str, text_of: Callable[[list[str]], str | None]
) -> tuple[list[str], Iterator[Record]]:
    """The column names and the records below them; no names where the file does not begin with any.

    Of the ``delimiters`` that one is taken by which the first line has a column of texts (``text_of``). Quotes are
    doubled within quotes, or escaped where the beginning of the file agrees with that; between tabs they are letters as
    others where most of them enclose no cell.
    """
    csv.field_size_limit(LONGEST_CELL)
    sample, size = [], 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if size > SAMPLE or len(sample) == 1000:
            break
    if sample and (said := re.fullmatch(r'"?sep=(.)"?\s*', sample[0])):  # Excel's own way to name the delimiter
        sample[0], delimiters = "\n", said[1]
    heads: dict[str, list[str]] = {}
    for delimiter in delimiters:
        try:
            heads[delimiter] = next(filter(None, csv.reader(sample, delimiter=delimiter, strict=True)), [])
        except csv.Error:
            continue
    if not any(heads.values()):
        return [], iter(())
    delimiter = max(heads, key=lambda one: (text_of(heads[one]) is not None, len(heads[one])))
    head = heads[delimiter]
    beside = [i for i, column in enumerate(head) if column != text_of(head)]
    form: dict[str, Any] = {"delimiter": delimiter}
    if delimiter == "\t":
        rows = [line.rstrip("\r\n").split("\t") for line in sample if line.strip()]
        quoted = [
            re.fullmatch('"([^"]|"")*"', cell) is not None for row in rows for cell in row if cell.startswith('"')
        ]
        if quoted.count(False) > quoted.count(True) and all(len(row) == len(head) for row in rows):
            form["quoting"] = csv.QUOTE_NONE
    escaped = [{"delimiter": delimiter, "escapechar": "\\", "doublequote": False}]
    forms = [form, *escaped] if any('\\"' in line for line in sample) else [form]
    for form in forms:
        wrong = [number for number, _, problem in _records(sample, form, len(head), beside) if problem]
        if not wrong or wrong[0] > 0.9 * len(sample):  # the sample may end within a text
            break
    else:
        form = forms[0]
    records = _records(chain(sample, lines), form, len(head), beside)
    next(records, None)  # the column names
    return head, records


def _records(lines: Iterable[str], form: dict[str, Any], columns: int, beside: list[int]) -> Iterator[Record]:
    """The records of a file of so many columns, those ``beside`` the text by their numbers; empty lines are left out.

    A record of several lines, more than one of which could be a row by itself, is no text with line breaks: a stray
    quote has swallowed rows. It ends with its first line, and the others are read again.
    """
    raw: list[str] = []
    again: deque[str] = deque()
    source = iter(lines)

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(source, None)) is not None:
            raw.append(line)
            yield line

    forms = {i: {"0", "pos", "neg", "positive", "negative"} for i in beside}  # of the cells that the columns hold

    def like_a_row(cells: list[str]) -> bool:
        return len(cells) == columns and bool(forms) and all(_form(cells[i]) in forms[i] for i in forms)

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
        if len(cells) == columns and number < 1000:
            for i in [*forms]:
                forms[i].add(_form(cells[i]))
                if len(forms[i]) > FEW:
                    del forms[i]
        if len(raw) > 1 and not problem:
            alone = csv.reader(raw, delimiter=form["delimiter"], quoting=csv.QUOTE_NONE)
            problem = STRAY if sum(map(like_a_row, alone)) > 1 else ""
        if problem == STRAY:
            again.extendleft(reversed(raw[1:]))
        if len(cells) > columns:
            problem = problem or "more cells than columns; put texts that hold the delimiter in double quotes"
        if cells or problem:
            yield number, cells, problem
        number += 1 if problem == STRAY else len(raw)


def _form(cell: str) -> str:
    """A short cell with 0 for each number in it; "" for a long one."""
    return re.sub(r"\d+", "0", cell.strip(' "').lower()) if len(cell) < 40 else ""
