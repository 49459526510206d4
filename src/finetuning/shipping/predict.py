"""Lesson 05: label a file of reviews of any size: ``python -m finetuning predict --run pocket reviews.csv > out.csv``.

A chunk of reviews at a time is read, cleaned, scored and written, so that memory does not grow with the file.
"""

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from finetuning.data import FORMATS, clean_text
from finetuning.errors import CourseError
from finetuning.labels import LABEL_WORDS

COLUMN = "text"
HEAD = ("row", "label", "probability_positive")
CHUNK_REVIEWS, CHUNK_CHARACTERS = 2048, 4_000_000  # a chunk is full with either; smaller ones would mean more padding
GROUP = 512  # reviews scored at a time
LONGEST_CELL = 2**24  # characters; a longer one is taken for a quote that was never closed
END = "\ud800"  # no file holds this: it can be written in no encoding
EVERY = 30  # seconds between two lines of progress where there is no terminal to draw a bar on


class Row(NamedTuple):
    """A review of a file: ``place`` to name it by ("line 7"), and its text, or what is wrong with it."""

    place: str
    text: object = ""
    problem: str = ""


def predict_file(path: str, folder: Path, output: TextIO) -> tuple[int, int]:
    """Write a line of CSV to ``output`` for each good review of a file; returns the counts (written, skipped).

    ``path`` is a CSV, JSON Lines or Parquet file with a column ``text``, or ``-`` for CSV from standard input; ``folder`` is
    a saved model (``usage.save_usage``). The lines keep the file's order: ``row`` counts its reviews from 1, ``label`` is a
    label word, ``probability_positive`` the model's probability of the positive one. A review that cannot be read is named
    on standard error and skipped. Raises CourseError for a file that cannot be read at all.
    """
    from finetuning.labels import score_labels
    from finetuning.shipping.usage import load_shipped, read_usage

    read_usage(folder)  # said now rather than after the libraries are loaded
    rows, share = open_reviews(path)
    first = next(rows, None)
    if first is None:
        raise CourseError(f"{_name(path)} holds no reviews.")
    model, tokenizer, usage = load_shipped(folder)
    table = csv.writer(output, lineterminator="\n")
    table.writerow(HEAD)
    written = skipped = 0
    with Progress() as progress:
        for texts, problems in _chunks(chain([first], rows)):
            for row in problems:
                progress.say(f"{_name(path)}, {row.place}: {row.problem}; skipped")
            written, skipped = written + len(texts), skipped + len(problems)
            progress.expect(written + skipped, share())
            progress.add(len(problems))
            scores: dict[int, np.ndarray] = {}
            for group in _by_length(texts):
                batch = [texts[number] for number in group]
                found, _ = score_labels(model, tokenizer, batch, prompt=usage["prompt"], max_length=usage["max_length"])
                scores.update(zip(group, found, strict=True))
                progress.add(len(group))
            for number in texts:
                word = LABEL_WORDS[scores[number].argmax()]
                table.writerow((number, word, f"{scores[number][1]:.6f}"))
            output.flush()
    return written, skipped


class Progress:
    """How far the work is, on standard error: a bar on a terminal, elsewhere a line every EVERY seconds."""

    def __init__(self):
        from tqdm import tqdm

        self.bar = tqdm(unit=" reviews", disable=not sys.stderr.isatty(), file=sys.stderr, dynamic_ncols=True)
        self.done, self.began = 0, time.monotonic()
        self.said = self.began

    def __enter__(self):
        return self

    def __exit__(self, *error):
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
        if self.bar.disable and now - self.said > EVERY:
            self.said = now
            self.say(f"{self.done:,} reviews done, {self.done / (now - self.began):,.0f} per second")


def _by_length(texts: dict[int, str]) -> list[list[int]]:
    """The row numbers of a chunk in groups of similar length, so that little is padded and progress shows in between."""
    order = sorted(texts, key=lambda number: -len(texts[number]))
    return [order[start : start + GROUP] for start in range(0, len(order), GROUP)]


def _chunks(rows):
    """Rows gathered to chunks: a dict of row number -> cleaned text, and the list of the bad rows among them."""
    texts, problems, characters = {}, [], 0
    for number, row in enumerate(rows, 1):
        row = _checked(row)
        if row.problem:
            problems.append(row)
        else:
            texts[number] = row.text
            characters += len(row.text)
        if len(texts) + len(problems) >= CHUNK_REVIEWS or characters >= CHUNK_CHARACTERS:
            yield texts, problems
            texts, problems, characters = {}, [], 0
    if texts or problems:
        yield texts, problems


def _checked(row):
    """The row with its text cleaned as for training, or with what is wrong with it."""
    if row.problem:
        return row
    if not isinstance(row.text, str):
        kind = "missing" if row.text is None else f"not a text but {type(row.text).__name__}"
        return row._replace(problem=f"the text is {kind}")
    try:
        row.text.encode()
    except UnicodeEncodeError:
        return row._replace(problem="the text is not valid UTF-8")
    text = clean_text(row.text)
    return row._replace(text=text) if text else row._replace(problem="the text is empty")


def open_reviews(path: str | Path) -> tuple[Iterator[Row], Callable[[], float | None]]:
    """The rows of a file, one after the other, and a function that tells the share of it that is read (None: unknown).

    Raises CourseError, at the latest with the first row, when it cannot be read or has no column ``text``.
    """
    if path == "-":
        lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape", newline="")
        return _csv_rows(lines, "standard input"), lambda: None
    path = Path(path)
    if path.suffix not in FORMATS:
        raise CourseError(f"{path} is no CSV, JSON Lines or Parquet file ({', '.join(FORMATS)}).")
    try:
        if path.suffix == ".parquet":
            return _parquet_rows(path)
        lines = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except FileNotFoundError as error:
        raise CourseError(f"There is no file {path}; check its name.") from error
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    size = max(1, path.stat().st_size)
    rows = _csv_rows if path.suffix == ".csv" else _json_rows
    return rows(lines, path), lambda: lines.buffer.tell() / size  # type: ignore[union-attr]


def _name(path):
    return "standard input" if path == "-" else path


def _missing(name, found):
    found = ", ".join(map(repr, found[:8])).encode("ascii", "backslashreplace").decode() or "none"
    return CourseError(f"{name} has no column {COLUMN!r}; found are {found}. Give the column of the reviews that name.")


def _csv_rows(lines, name):
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(chain(lines, [END]))
    try:
        head = next(reader)
    except csv.Error as error:
        raise CourseError(
            f"{name} begins with no line of column names; expected is CSV with a column {COLUMN!r}."
        ) from error
    if head == [END]:
        raise CourseError(f"{name} is empty; expected is CSV with a column {COLUMN!r}.")
    if any("\x00" in cell or _undecodable(cell) for cell in head):
        raise CourseError(f"{name} is not UTF-8 text; save it as UTF-8.")
    if COLUMN not in head:
        raise _missing(name, head)
    column = head.index(COLUMN)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            yield Row(place, problem="a text of many million characters; is a quote never closed?")
            continue
        if cells == [END]:
            break
        if not cells:  # an empty line
            continue
        if cells[-1].endswith(END):
            yield Row(place, problem="a quote opens here and is never closed; the rest of the file is inside it")
        elif len(cells) > len(head):
            yield Row(place, problem="more cells than columns; put texts that hold commas in double quotes")
        else:
            yield Row(place, cells[column] if column < len(cells) else None)


def _undecodable(text):
    return any("\udc80" <= character <= "\udcff" for character in text)


def _json_rows(lines, name):
    seen = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield Row(place, problem="not a JSON object; JSON Lines has one object per line")
            continue
        if not isinstance(row, dict):
            yield Row(place, problem="not a JSON object; JSON Lines has one object per line")
            continue
        if not seen and COLUMN not in row:
            raise _missing(name, list(row))
        seen = True
        yield Row(place, row.get(COLUMN))


def _parquet_rows(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without the buffer a column of a whole row group would be read at once.
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    if COLUMN not in file.schema_arrow.names:
        raise _missing(path, file.schema_arrow.names)
    kind = file.schema_arrow.field(COLUMN).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise CourseError(f"The column {COLUMN!r} of {path} holds {kind} values; expected are texts.")
    read = 0

    def rows():
        nonlocal read
        batches = file.iter_batches(batch_size=64, columns=[COLUMN])
        while True:
            try:
                cells = next(batches, None)
                values = [] if cells is None else cells.column(0).cast(pa.large_binary()).to_pylist()
            except (OSError, pa.ArrowException):
                yield Row(f"row {read + 1}", problem="damaged, and the file cannot be read on from here")
                return
            if not values:
                return
            for value in values:
                read += 1
                yield Row(f"row {read}", None if value is None else value.decode("utf-8", "surrogateescape"))

    return rows(), lambda: read / max(1, file.metadata.num_rows)
