"""Lesson 07: label a file of reviews of any size: ``python -m finetuning predict --run pocket reviews.csv > out.csv``.

A chunk of reviews at a time is read, cleaned, scored and written, so that memory does not grow with the file.
"""

import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from tqdm import tqdm

from finetuning.errors import CourseError
from finetuning.files import find_damage
from finetuning.reviews import TEXT, Row, clean_text, open_reviews, problem_of

if TYPE_CHECKING:
    from finetuning.labels import Rows
    from finetuning.speed.prediction import Scoring

CHUNK_REVIEWS, CHUNK_CHARACTERS = 2048, 4_000_000  # a chunk is full with either; smaller ones would mean more padding
GROUP = 512  # reviews scored at a time
EVERY = 30  # seconds at least between two lines of progress where there is no terminal to draw a bar on


def predict_file(path: str, folder: Path, output: TextIO, column: str = "", *, int8: bool = False) -> tuple[int, int]:
    """Write a line of CSV to ``output`` for each good review of a file; returns the counts (written, skipped).

    ``path`` is a file that ``reviews.open_reviews`` reads, or ``-`` for CSV from standard input; ``folder`` is a saved
    model (``usage.save_usage``); ``column`` names the texts, where they have no usual name. ``int8``: in 8-bit
    integers, which is faster and changes a few answers; standard error tells what that does to the run's test reviews,
    and the way of scoring. The lines keep the file's order: ``row`` counts its reviews from 1, ``label`` is a label
    word, and each word has a column with its probability, as ``probability_positive``. A review that cannot be read is
    named on standard error and skipped. Raises CourseError for a file that cannot be read at all.
    """
    file = open_reviews(path, text=column, only_text=True)
    first = next(file.rows, None)
    if first is None:
        raise CourseError(f"{file.name} holds no reviews.")
    from finetuning.batching import length_sorted_batches, token_rows  # not before the file is known to be one
    from finetuning.labels import label_tokens
    from finetuning.speed.prediction import quickest
    from finetuning.usage import load_shipped

    model, tokenizer, usage = load_shipped(folder)
    rows_of = partial(token_rows, tokenizer, prompt=usage["prompt"], max_length=usage["max_length"])
    words, tokens = usage["label_words"], label_tokens(tokenizer, usage["label_words"])
    score, way = quickest(model, tokens, usage["max_length"], int8=int8)
    print(f"scored by {way}", file=sys.stderr)
    if int8:
        exact, _ = quickest(model, tokens, usage["max_length"])
        print(_compared(score, exact, folder, rows_of), file=sys.stderr)
    table = csv.writer(output, lineterminator="\n")
    table.writerow(["row", "label", *(f"probability_{word}" for word in words)])
    written = skipped = 0
    began = last_line = time.monotonic()
    with tqdm(unit=" reviews", disable=not sys.stderr.isatty(), file=sys.stderr, dynamic_ncols=True) as progress:
        if file.text != TEXT[0]:
            progress.write(f"text from column {file.text!r}", file=sys.stderr)
        for texts, problems in _chunks(chain([first], file.rows), file.text):
            for place, problem in problems:
                progress.write(f"{file.name}, {place}: {problem}; skipped", file=sys.stderr)
            written, skipped = written + len(texts), skipped + len(problems)
            progress.total = round((written + skipped) / read) if (read := file.share()) else None
            progress.update(len(problems))
            cleaned, scores = list(texts.values()), np.zeros((len(texts), len(words)))
            # in groups of similar length: little is padded, and progress shows in between
            for group in length_sorted_batches([len(text) for text in cleaned], GROUP):
                scores[group] = score(rows_of([cleaned[i] for i in group]))
                progress.update(len(group))
            for number, given in zip(texts, scores, strict=True):
                table.writerow([number, words[given.argmax()], *(f"{one:.6f}" for one in given)])
            output.flush()
            done, now = written + skipped, time.monotonic()
            if progress.disable and now - last_line > EVERY:
                last_line = now
                progress.write(f"{done:,} reviews done, {done / (now - began):,.0f} per second", file=sys.stderr)
    return written, skipped


def _compared(int8: "Scoring", exact: "Scoring", folder: Path, rows_of: Callable[[list[str]], "Rows"]) -> str:
    """What 8-bit integers change on some test reviews of the model's run: answers, accuracy and speed, in words."""
    from datasets import load_from_disk

    from finetuning.data import take
    from finetuning.evaluation.pairs import paired, paired_verdict

    if find_damage(kept := folder.parents[1] / "data" / "reviews"):
        return f"8-bit integers: not compared with the exact way, as there are no whole test reviews in {kept}"
    test = take(load_from_disk(kept)["test"], GROUP, seed=1)
    rows, answers, seconds = rows_of(test["text"][:]), [], []
    for score in (int8, exact):
        score(rows[:16])  # a first call is slower: it does not count
        began = time.perf_counter()
        answers.append(score(rows).argmax(axis=1))
        seconds.append(time.perf_counter() - began)
    same, pair = (answers[0] == answers[1]).sum(), paired(*(one == np.array(test["label"]) for one in answers))
    gain = f"{same:,} of {len(rows):,} answers as without them, {seconds[1] / seconds[0]:.1f} times as fast"
    return f"8-bit integers, on test reviews of this run: {gain}. {paired_verdict('int8', 'exact', pair)}"


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
    text: Any = row.cells.get(column)
    if problem := problem_of(row, column) or ("the text is missing" if text is None else ""):
        return "", problem
    text = clean_text(text)
    return text, "" if text else "the text is empty"
