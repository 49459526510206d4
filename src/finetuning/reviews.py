"""Files of reviews, read row by row: whole by lesson 01, a chunk at a time by ``python -m finetuning predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from finetuning.errors import CourseError

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
LONGEST_CELL = 2**24  # characters; a longer one is taken for a quote that was never closed
END = "\ud800"  # no file holds this: it can be written in no encoding


class Row(NamedTuple):
    """A row of a file: ``place`` to name it by ("line 7"), its cells by column, or what is wrong with it.

    Bytes that are no UTF-8 stand in a text as lone surrogates, as ``not_utf8`` finds them.
    """

    place: str
    cells: dict[str, Any]
    problem: str = ""


class ReviewFile(NamedTuple):
    """A file being read: its rows, one after the other, and a function for the share that is read (None: unknown)."""

    rows: Iterator[Row]
    share: Callable[[], float | None]


def open_reviews(path: str | Path, *, column: str | None = None) -> ReviewFile:
    """The rows of a CSV, JSON Lines or Parquet file; of CSV from standard input where ``path`` is ``-``.

    A CSV cell is text, whatever stands in it. With ``column`` only that one is wanted: a file without it is refused.
    Raises CourseError, at the latest with the first row, when the file cannot be read at all.
    """
    if path == "-":
        lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape", newline="")
        return ReviewFile(_csv_rows(lines, "standard input", column), lambda: None)
    path = Path(path)
    if not path.exists():
        raise CourseError(f"There is no file {path}; check the path.")
    if path.suffix not in FORMATS:
        raise CourseError(f"{path} is no CSV, JSON Lines or Parquet file ({', '.join(FORMATS)}).")
    try:
        if path.suffix == ".parquet":
            return _parquet_rows(path, column)
        lines = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    size = max(1, path.stat().st_size)
    rows = _csv_rows if path.suffix == ".csv" else _json_rows
    return ReviewFile(rows(lines, path, column), lambda: lines.buffer.tell() / size)  # type: ignore[union-attr]


def not_utf8(text: str) -> bool:
    """Whether a text holds bytes that are no UTF-8, or half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_column(name: str | Path, columns: Iterable[str], wanted: str | None) -> None:
    if wanted is not None and wanted not in columns:
        shown = ", ".join(map(repr, list(columns)[:8])).encode("ascii", "backslashreplace").decode() or "none"
        raise CourseError(
            f"{name} has no column {wanted!r}; found are {shown}. Give the column of the reviews that name."
        )


def _csv_rows(lines: Iterable[str], name: str | Path, column: str | None) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(chain(lines, [END]))
    try:
        head = next(reader)
    except csv.Error as error:
        raise CourseError(
            f"{name} begins with no line of column names; expected is CSV with a column 'text'."
        ) from error
    if head == [END]:
        raise CourseError(f"{name} is empty; expected is CSV with a column 'text'.")
    if any("\x00" in cell or not_utf8(cell) for cell in head):
        raise CourseError(f"{name} is not UTF-8 text; save it as UTF-8.")
    _check_column(name, head, column)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            yield Row(place, {}, "a text of many million characters; is a quote never closed?")
            continue
        if cells == [END]:
            break
        if not cells:  # an empty line
            continue
        if cells[-1].endswith(END):
            yield Row(place, {}, "a quote opens here and is never closed; the rest of the file is inside it")
        elif len(cells) > len(head):
            yield Row(place, {}, "more cells than columns; put texts that hold commas in double quotes")
        else:
            yield Row(place, dict(zip(head, cells, strict=False)))


def _json_rows(lines: Iterable[str], name: str | Path, column: str | None) -> Iterator[Row]:
    checked = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield Row(place, {}, "not a JSON object; JSON Lines has one object per line")
            continue
        if not checked:
            _check_column(name, row, column)
        checked = True
        yield Row(place, row)


def _parquet_rows(path: Path, column: str | None) -> ReviewFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without the buffer a column of a whole row group would be read at once.
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    schema = file.schema_arrow
    _check_column(path, schema.names, column)
    texts = {}  # column -> whether it holds texts, which are read as bytes, for not all of them need be UTF-8
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        texts[field.name] = any(
            t(kind) for t in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        )
        if field.name == column and not texts[field.name]:
            raise CourseError(f"The column {column!r} of {path} holds {kind} values; expected are texts.")
    read = 0

    def values(name: str, cells: Any) -> list:
        if not texts[name]:
            return cells.to_pylist()
        return [
            None if value is None else value.decode("utf-8", "surrogateescape")
            for value in cells.cast(pa.large_binary()).to_pylist()
        ]

    def rows() -> Iterator[Row]:
        nonlocal read
        names = schema.names if column is None else [column]
        batches = file.iter_batches(batch_size=64, columns=names)
        while True:
            try:
                batch = next(batches, None)
                cells = {} if batch is None else {name: values(name, batch.column(name)) for name in names}
            except (OSError, pa.ArrowException):
                yield Row(f"row {read + 1}", {}, "damaged, and the file cannot be read on from here")
                return
            if not batch:
                return
            for several in zip(*cells.values(), strict=True):
                read += 1
                yield Row(f"row {read}", dict(zip(names, several, strict=True)))

    return ReviewFile(rows(), lambda: read / max(1, file.metadata.num_rows))
