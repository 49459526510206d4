"""Files of reviews, read row by row: whole by lesson 01, a chunk at a time by ``python -m finetuning predict``."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from finetuning.delimited import LONGEST_CELL, SAMPLE, read_delimited
from finetuning.errors import CourseError

FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "table", ".arrow": "table", ".feather": "table",
}  # fmt: skip
KINDS = "CSV, TSV, JSON Lines, JSON, Parquet or Arrow file, which may be packed by gzip"
PACKED = {b"\x1f\x8b": (".gz", gzip.open), b"BZh": (".bz2", bz2.open), b"\xfd7zXZ": (".xz", lzma.open)}
TEXT = ("text", "review", "sentence", "content", "comment", "reviewtext", "reviewbody", "reviewcontent", "body")
LABEL = (
    "label", "sentiment", "polarity", "stars", "rating", "class", "score", "star", "starrating", "overall", "target",
)  # fmt: skip
# What the libraries raise on a damaged file; pyarrow's errors are ValueErrors, too.
UNREADABLE = (OSError, EOFError, ValueError, OverflowError, NotImplementedError, zlib.error, lzma.LZMAError)


class Row(NamedTuple):
    """A row of a file: ``place`` to name it by ("line 7"), its cells by column, or what is wrong with it.

    Bytes that are no UTF-8 stand in a text as lone surrogates, as ``not_utf8`` finds them.
    """

    place: str
    cells: dict[str, Any]
    problem: str = ""


class ReviewFile(NamedTuple):
    """A file being read: its rows, a function for the share that is read (None: unknown), and the column of texts."""

    rows: Iterator[Row]
    share: Callable[[], float | None]
    text: str


def open_reviews(path: str | Path, *, text: str = "", only_text: bool = False) -> ReviewFile:
    """The rows of a file of one of the FORMATS, or of CSV from standard input where ``path`` is ``-``.

    A cell of CSV is text, whatever stands in it. The column of texts is named ``text``, or is the one of a usual name;
    with ``only_text`` no other is wanted. Raises CourseError when the file cannot be read at all.
    """
    if path == "-":
        stdin = io.BufferedReader(sys.stdin.buffer)  # type: ignore[type-var]
        return _readable(_text_file(stdin, "standard input", ".csv", text))
    path = Path(path)
    if not path.exists():
        raise CourseError(f"There is no file {path}; check the path.")
    if path.is_dir():
        raise CourseError(f"{path} is a folder and cannot be read as a file; name one of the files in it.")
    if kind(path) is None:
        raise CourseError(f"{path} is no {KINDS} ({', '.join(FORMATS)}); save it as one of them.")
    try:
        if FORMATS[kind(path) or ""] == "table":
            return _readable(_table_file(path, text, only_text))
        return _readable(_text_file(path.open("rb"), path, kind(path) or "", text))
    except UNREADABLE as error:
        raise CourseError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _readable(file: ReviewFile) -> ReviewFile:
    """The file with its rows up to where it cannot be read on."""

    def rows() -> Iterator[Row]:
        place = "the beginning"
        try:
            for row in file.rows:
                place = row.place
                yield row
        except UNREADABLE:
            yield Row(f"after {place}", {}, "damaged, and the file cannot be read on from here")

    return file._replace(rows=rows())


def kind(path: Path) -> str | None:
    """The suffix that tells a file's format, in lower case and without one of packing; None for no known format."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (suffix for suffix, _ in PACKED.values()):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def not_utf8(text: str) -> bool:
    """Whether a text holds bytes that are no UTF-8, or half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def find_column(columns: Iterable[str], usual: Sequence[str], wanted: str = "") -> str | None:
    """The column that is ``wanted``, else the one of the first usual name, else the only one of another; None: none.

    Case, spaces and underscores of the other names do not count.
    """
    columns = list(columns)
    plain = {column: re.sub(r"[\W_]", "", str(column)).lower() for column in columns}
    for exact in (wanted,) if wanted else (usual[0],):
        if columns.count(exact) == 1:
            return exact
    found = [column for column in columns if plain[column] in usual]
    first = [column for column in found if plain[column] == usual[0]]
    found = first or found
    return found[0] if len(found) == 1 and not wanted else None


def need_column(name: object, columns: Iterable[str], usual: Sequence[str], wanted: str = "") -> str:
    """``find_column``. Raises CourseError where there is none, or more than one."""
    columns = list(columns)
    if (found := find_column(columns, usual, wanted)) is not None:
        return found
    shown = ", ".join(repr(str(column)[:40]) for column in columns[:8]).encode("ascii", "backslashreplace").decode()
    raise CourseError(
        f"{name} has no column {wanted or usual[0]!r}; found are {shown or 'none'}. Give the column that name, or say "
        f"which one it is ({usual[0].upper()}=...); in a text file the first line names the columns."
    )


def _text_file(file: IO[bytes], name: str | Path, suffix: str, text: str) -> ReviewFile:
    """A file of CSV or JSON: unpacked and decoded by its first bytes."""
    start = file.peek(8)  # type: ignore[attr-defined]
    if start.startswith(b"PK\x03\x04"):
        raise CourseError(f"{name} is a zip archive or an Excel workbook; unpack it, or save it as CSV.")
    unpack: Any = next((opener for magic, (_, opener) in PACKED.items() if start.startswith(magic)), None)
    stream = unpack(file) if unpack else file
    start = stream.peek(8)  # type: ignore[union-attr]
    if not start:
        raise CourseError(f"{name} is empty; expected are a text and a label for each review.")
    wide = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    lines = io.TextIOWrapper(stream, "utf-16" if wide else "utf-8-sig", "strict" if wide else "surrogateescape", "")  # type: ignore[arg-type]
    size = Path(name).stat().st_size if isinstance(name, Path) else 0
    reader = _json_file if FORMATS[suffix] == "json" else _csv_file
    rows, column = reader(lines, name, suffix, text)
    return ReviewFile(rows, lambda: (1.0 if file.closed else file.tell() / size) if size else None, column)


def _csv_file(lines: io.TextIOWrapper, name: str | Path, suffix: str, text: str) -> tuple[Iterator[Row], str]:
    delimiters = "\t,;|" if suffix in (".tsv", ".tab", ".txt") else ",;\t|"
    head, records = read_delimited(lines, delimiters, lambda head: find_column(head, TEXT, text))
    if not head:
        raise CourseError(f"{name} begins with no line of column names; expected is one with a column 'text'.")
    if any("\x00" in cell or not_utf8(cell) for cell in head):
        raise CourseError(f"{name} is not UTF-8 text; save it as UTF-8.")
    column = need_column(name, head, TEXT, text)
    rows = (Row(f"line {n}", {} if said else dict(zip(head, cells, strict=False)), said) for n, cells, said in records)
    return rows, column


def _json_file(lines: io.TextIOWrapper, name: str | Path, suffix: str, text: str) -> tuple[Iterator[Row], str]:
    start = ""
    while not start.strip() and (piece := lines.readline(SAMPLE)):
        start += piece
    if re.match(r"\s*\[\s*(\{|\]|$)", start):
        rows = _array_rows(lines, start)
    else:
        rows = _line_rows(chain(io.StringIO(start + ("" if start.endswith("\n") else lines.readline()), ""), lines))
    first = []  # the rows up to the first good one, which tells the columns
    for row in rows:
        first.append(row)
        if not row.problem:
            return chain(first, rows), need_column(name, row.cells, TEXT, text)
    return iter(first), text or TEXT[0]


def _line_rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            problem = "" if isinstance(row, dict) else "not a JSON object; JSON Lines has one object per line"
            yield Row(f"line {number}", {} if problem else row, problem)


def _array_rows(file: io.TextIOWrapper, start: str) -> Iterator[Row]:
    """The objects of a JSON array, a piece of the file at a time."""
    decode, text, at, number = json.JSONDecoder().raw_decode, start, start.index("[") + 1, 0
    gap = re.compile(r"[\s,]*")
    while True:
        at = gap.match(text, at).end()  # type: ignore[union-attr]
        try:
            row, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            if text[at : at + 1] == "]" and not (text[at + 1 :] + file.read(SAMPLE)).strip():
                return
            more = "" if len(text) - at > LONGEST_CELL else file.read(max(SAMPLE, len(text) - at))
            if not more or text[at : at + 1] == "]" or isinstance(error, RecursionError):
                yield Row(f"review {number + 1}", {}, "no whole JSON object, and the file cannot be read on from here")
                return
            text, at = text[at:] + more, 0
            continue
        number += 1
        whole = isinstance(row, dict)
        yield Row(f"review {number}", row if whole else {}, "" if whole else "not a JSON object")


def _table_file(path: Path, text: str, only_text: bool) -> ReviewFile:
    """A Parquet or Arrow file. A class label is given by its name, whatever its number is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = None
    if kind(path) == ".parquet":
        # Without the buffer a column of a whole row group would be read at once.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        schema, total = file.schema_arrow, file.metadata.num_rows
    else:
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
        except pa.ArrowInvalid:
            file = pa.ipc.open_stream(pa.memory_map(str(path)))
        schema = file.schema
    column = need_column(path, schema.names, TEXT, text)
    coded = pa.types.is_dictionary
    kinds = {field.name: field.type.value_type if coded(field.type) else field.type for field in schema}
    strings = (pa.string(), pa.large_string(), pa.string_view())
    if kinds[column] not in strings:
        raise CourseError(f"The column {column!r} of {path} holds {kinds[column]} values; expected are texts.")
    names = [column] if only_text else [name for name in schema.names if schema.names.count(name) == 1]
    classes = _class_names(schema.metadata)
    read = 0

    def batches() -> Iterator[Any]:
        if total is not None:
            yield from file.iter_batches(batch_size=64, columns=names)
            return
        several = map(file.get_batch, range(file.num_record_batches)) if hasattr(file, "get_batch") else file
        for batch in several:
            yield from (batch.slice(start, 64) for start in range(0, len(batch), 64))

    def values(name: str, cells: Any) -> list:
        if kinds[name] not in strings:
            known = dict(enumerate(classes.get(name, ())))
            return [known.get(value, value) if known else value for value in cells.to_pylist()]
        # Read as bytes, for not all of them need be UTF-8.
        several = cells.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in several]

    def rows() -> Iterator[Row]:
        nonlocal read
        for batch in batches():
            for cells in zip(*[values(name, batch.column(name)) for name in names], strict=True):
                read += 1
                yield Row(f"row {read}", dict(zip(names, cells, strict=True)))

    return ReviewFile(rows(), lambda: read / max(1, total) if total is not None else None, column)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The class names of the columns that are class labels, as ``datasets`` notes them in a file's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError):
        return {}
