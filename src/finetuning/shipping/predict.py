"""Lesson 05: label a file of reviews of any size: ``python -m finetuning predict --run pocket reviews.csv > out.csv``.

A chunk of reviews at a time is read, cleaned, scored and written, so that memory does not grow with the file.
"""

import csv
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Self, TextIO

import numpy as np

from finetuning.data import clean_text
from finetuning.errors import CourseError
from finetuning.labels import LABEL_WORDS, score_labels
from finetuning.reviews import TEXT, Row, not_utf8, open_reviews
from finetuning.shipping.usage import load_shipped, read_usage

HEAD = ("row", "label", "probability_positive")
CHUNK_REVIEWS, CHUNK_CHARACTERS = 2048, 4_000_000  # a chunk is full with either; smaller ones would mean more padding
GROUP = 512  # reviews scored at a time
EVERY = 30  # seconds between two lines of progress where there is no terminal to draw a bar on


def predict_file(path: str, folder: Path, output: TextIO, column: str = "") -> tuple[int, int]:
    """Write a line of CSV to ``output`` for each good review of a file; returns the counts (written, skipped).

    ``path`` is a file that ``reviews.open_reviews`` reads, or ``-`` for CSV from standard input; ``folder`` is a saved
    model (``usage.save_usage``); ``column`` names the texts, where they have no usual name. The lines keep the file's
    order: ``row`` counts its reviews from 1, ``label`` is a label word, ``probability_positive`` the probability of the
    positive one. A review that cannot be read is named on standard error and skipped. Raises CourseError for a
    file that cannot be read at all.
    """
    read_usage(folder)  # said now rather than after the libraries are loaded
    rows, share, column = open_reviews(path, text=column, only_text=True)
    first = next(rows, None)
    if first is None:
        raise CourseError(f"{_name(path)} holds no reviews.")
    model, tokenizer, usage = load_shipped(folder)
    table = csv.writer(output, lineterminator="\n")
    table.writerow(HEAD)
    written = skipped = 0
    with Progress() as progress:
        if column != TEXT[0]:
            progress.say(f"text from column {column!r}")
        for texts, problems in _chunks(chain([first], rows), column):
            for place, problem in problems:
                progress.say(f"{_name(path)}, {place}: {problem}; skipped")
            written, skipped = written + len(texts), skipped + len(problems)
            progress.expect(written + skipped, share())
            progress.add(len(problems))
            scores: dict[int, np.ndarray] = {}
            for group in _by_length(texts):
                batch = [texts[number] for number in group]
                answers, _ = score_labels(
                    model, tokenizer, batch, prompt=usage["prompt"], max_length=usage["max_length"]
                )
                scores.update(zip(group, answers, strict=True))
                progress.add(len(group))
            for number in texts:
                word = LABEL_WORDS[scores[number].argmax()]
                table.writerow((number, word, f"{scores[number][1]:.6f}"))
            output.flush()
    return written, skipped


class Progress:
    """How far the work is, on standard error: a bar on a terminal, elsewhere a line every EVERY seconds."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self.bar = tqdm(unit=" reviews", disable=not sys.stderr.isatty(), file=sys.stderr, dynamic_ncols=True)
        self.done, self.began = 0, time.monotonic()
        self.last_line = self.began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(line, file=sys.stderr)

    def expect(self, read: int, share: float | None) -> None:
        """Reckon the total from the reviews read so far and the share of the file that they are."""
        self.bar.total = round(read / share) if share else None

    def add(self, reviews: int) -> None:
        """Count so many reviews as done."""
        self.bar.update(reviews)
        self.done, now = self.done + reviews, time.monotonic()
        if self.bar.disable and now - self.last_line > EVERY:
            self.last_line = now
            self.say(f"{self.done:,} reviews done, {self.done / (now - self.began):,.0f} per second")


def _by_length(texts: dict[int, str]) -> list[list[int]]:
    """The row numbers of a chunk in groups of similar length: little is padded, and progress shows in between."""
    order = sorted(texts, key=lambda number: -len(texts[number]))
    return [order[start : start + GROUP] for start in range(0, len(order), GROUP)]


def _chunks(rows: Iterable[Row], column: str) -> Iterator[tuple[dict[int, str], list[tuple[str, str]]]]:
    """Rows gathered to chunks: a dict of row number -> cleaned text, and of the bad ones (place, what is wrong)."""
    texts: dict[int, str] = {}
    problems: list[tuple[str, str]] = []
    characters = 0
    for number, row in enumerate(rows, 1):
        text, problem = _cleaned(row, column)
        if problem:
            problems.append((row.place, problem))
        else:
            texts[number] = text
            characters += len(text)
        if len(texts) + len(problems) >= CHUNK_REVIEWS or characters >= CHUNK_CHARACTERS:
            yield texts, problems
            texts, problems, characters = {}, [], 0
    if texts or problems:
        yield texts, problems


def _cleaned(row: Row, column: str) -> tuple[str, str]:
    """The row's text, cleaned as for training, or "" and what is wrong with it."""
    text = row.cells.get(column)
    if row.problem:
        return "", row.problem
    if not isinstance(text, str):
        return "", f"the text is {'missing' if text is None else f'not a text but {type(text).__name__}'}"
    if not_utf8(text):
        return "", "the text is not valid UTF-8"
    text = clean_text(text)
    return text, "" if text else "the text is empty"


def _name(path: str) -> str:
    return "standard input" if path == "-" else path
