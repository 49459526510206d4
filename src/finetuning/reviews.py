"""Files of reviews, read row by row: whole by lesson 01, a chunk at a time by ``python -m finetuning predict``."""

import bz2
import gzip
import html
import io
import json
import lzma
import re
import sys
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from finetuning.delimited import LONGEST_CELL, read_delimited
from finetuning.errors import CourseError, first_line
from finetuning.profiles import ASSETS

KNOWN: dict[str, Any] = tomllib.loads((ASSETS / "reviews.toml").read_text(encoding="utf-8"))
FORMATS, TEXT, LABEL = KNOWN["formats"], KNOWN["text"], KNOWN["label"]
LABEL_WORDS = ("negative", "positive")  # of labels 0 and 1, where the reviews bring no words of their own
KINDS = "CSV, TSV, JSON Lines, JSON, Parquet or Arrow file, which may be packed by gzip"
UNPACK: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by first bytes
LONGEST = 100_000  # characters; what follows in a longer text is cut when it is cleaned
# What the libraries raise on a damaged file; pyarrow's errors are ValueErrors, too.
UNREADABLE = (OSError, EOFError, ValueError, OverflowError, NotImplementedError, zlib.error, lzma.LZMAError)


def clean_text(text: str) -> str:
    """A review as plain text: HTML breaks and entities resolved, white space collapsed, at most LONGEST characters."""
    text = re.sub(r"<br\s*/?>", " ", text[:LONGEST], flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", html.unescape(text)).strip()


class Row(NamedTuple):
    """A row of a file: ``place`` to name it by ("line 7"), its cells by column, or what is wrong with it.

    Bytes that are no UTF-8 stand in a text as lone surrogates.
    """

    place: str
    cells: dict[str, Any]
    problem: str = ""


class ReviewFile(NamedTuple):
    """A file being read: its name, rows, a function for the share that is read (None: unknown), the column of texts."""

    name: str | Path
    rows: Iterator[Row]
    share: Callable[[], float | None]
    text: str


def open_reviews(path: str | Path, *, text: str = "", only_text: bool = False) -> ReviewFile:
    """The rows of a file of one of the FORMATS, or of CSV from standard input where ``path`` is ``-``.

    A cell of CSV is text, whatever stands in it. The column of texts is named ``text``, or is the one of a usual name;
    with ``only_text`` no other is wanted. Raises CourseError when the file cannot be read at all.
    """
    if path == "-":
        file = _text_file(sys.stdin.buffer, "standard input", ".csv", text)
        return file._replace(rows=_up_to_damage(file.rows))
    path, suffix = Path(path), kind(Path(path))
    if not path.exists():
        raise CourseError(f"There is no file {path}; check the path.")
    if path.is_dir():
        raise CourseError(f"{path} is a folder and cannot be read as a file; name one of the files in it.")
    if suffix is None:
        raise CourseError(f"{path} is no {KINDS} ({', '.join(FORMATS)}); save it as one of them.")
    try:
        if FORMATS[suffix] == "table":
            file = _table_file(path, suffix, text, only_text)
        else:
            file = _text_file(path.open("rb"), path, suffix, text)
    except UNREADABLE as error:
        raise CourseError(f"{path} cannot be read ({first_line(error)}); check it or save it anew.") from error
    return file._replace(rows=_up_to_damage(file.rows))


def _up_to_damage(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows up to where the file cannot be read on."""
    place = "the beginning"
    try:
        for row in rows:
            place = row.place
            yield row
    except UNREADABLE:
        yield Row(f"after {place}", {}, "damaged, and the file cannot be read on from here")


def kind(path: Path) -> str | None:
    """The suffix that tells a file's format, in lower case and without one of packing; None for no known format."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".bz2", ".xz")]
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def problem_of(row: Row, column: str) -> str:
    """What is wrong with a row or with its text, in words; "" where nothing is, though the text may be missing."""
    text = row.cells.get(column)
    if row.problem or text is None:
        return row.problem
    if not isinstance(text, str):
        return (
            f"{column!r} holds {type(text).__name__} values; expected is a text for each review, as "
            "to_json(orient='records', lines=True) of pandas writes them"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"not UTF-8 text in the column {column!r}; save it as UTF-8"
    return ""


def find_column(columns: Iterable[str], usual: Sequence[str], wanted: str = "") -> str | None:
    """The column that is ``wanted``, else the one of the first usual name, else the only one of another; None for none.

    Case, spaces and underscores of the other names do not count.
    """
    columns = list(columns)
    plain = {column: re.sub(r"[\W_]", "", str(column)).lower() for column in columns}
    matches = [[column for column in columns if column == (wanted or usual[0])]]
    if not wanted:
        matches += [[column for column in columns if plain[column] in names] for names in (usual[:1], usual)]
    first = next(filter(None, matches), [])
    return first[0] if len(first) == 1 else None


def need_column(name: object, columns: Iterable[str], usual: Sequence[str], wanted: str = "") -> str:
    """As ``find_column``. Raises CourseError where there is none, or more than one."""
    columns = list(columns)
    if (found := find_column(columns, usual, wanted)) is not None:
        return found
    shown = ", ".join(repr(str(column)[:40]) for column in columns[:8]).encode("ascii", "backslashreplace").decode()
    raise CourseError(
        f"{name} has no column {wanted or usual[0]!r}; found are {shown or 'none'}. Give the column that name, or say "
        f"which one it is ({usual[0].upper()}=...); in a text file the first line names the columns."
    )


def _text_file(file: Any, name: str | Path, suffix: str, text: str) -> ReviewFile:
    """A file of CSV or JSON: unpacked and decoded by its first bytes."""
    start = file.peek(8)
    if start.startswith(b"PK\x03\x04"):
        raise CourseError(f"{name} is a zip archive or an Excel workbook; unpack it, or save it as CSV.")
    stream = next((unpack(file) for magic, unpack in UNPACK.items() if start.startswith(magic)), file)
    start = stream.peek(8)
    if not start:
        raise CourseError(f"{name} is empty; expected are a text and a label for each review.")
    wide = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    lines = io.TextIOWrapper(stream, "utf-16" if wide else "utf-8-sig", "strict" if wide else "surrogateescape", "")
    size = name.stat().st_size if isinstance(name, Path) else 0
    rows, column = (_json_rows if FORMATS[suffix] == "json" else _delimited_rows)(lines, name, suffix, text)
    return ReviewFile(name, rows, lambda: (1.0 if file.closed else file.tell() / size) if size else None, column)


def _delimited_rows(lines: io.TextIOWrapper, name: str | Path, suffix: str, text: str) -> tuple[Iterator[Row], str]:
    delimiters = "\t,;|" if suffix in (".tsv", ".tab", ".txt") else ",;\t|"
    head, records = read_delimited(lines, delimiters, lambda head: find_column(head, TEXT, text))
    if not "".join(head).strip():
        raise CourseError(f"{name} begins with no line of column names; expected is one with a column 'text'.")
    if re.search("[\x00\ud800-\udfff]", "".join(head)):
        raise CourseError(f"{name} is not UTF-8 text; save it as UTF-8.")
    column = need_column(name, head, TEXT, text)
    twice = {one for one in head if head.count(one) > 1}  # each gets a name of its own
    head = [f"{one}.{head[: i + 1].count(one)}" if one in twice else one for i, one in enumerate(head)]
    rows = (Row(f"line {n}", {} if bad else dict(zip(head, cells, strict=False)), bad) for n, cells, bad in records)
    return rows, column


def _json_rows(lines: io.TextIOWrapper, name: str | Path, suffix: str, text: str) -> tuple[Iterator[Row], str]:
    numbered = enumerate(iter(lambda: lines.readline(LONGEST_CELL), ""), 1)
    number, first = next((one for one in numbered if one[1].strip()), (1, ""))
    array = re.match(r"\s*\[\s*(\{|\]|$)", first)
    rows = _array_rows(lines, first) if array else _line_rows(chain([(number, first)], numbered))
    ahead = []  # the rows up to the first good one, which tells the columns
    for row in rows:
        ahead.append(row)
        if not row.problem:
            return chain(ahead, rows), need_column(name, row.cells, TEXT, text)
    return iter(ahead), text or TEXT[0]


def _line_rows(numbered: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in numbered:
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            problem = "" if isinstance(row, dict) else "not a JSON object; JSON Lines has one object per line"
            yield Row(f"line {number}", {} if problem else row, problem)


def _array_rows(file: io.TextIOWrapper, text: str) -> Iterator[Row]:
    """The objects of a JSON array, of which ``text`` is the beginning, a piece of the file at a time."""
    decode, gap, at, number = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*"), text.index("[") + 1, 1
    while True:
        at = gap.match(text, at).end()  # type: ignore[union-attr]
        try:
            row, at = decode(text, at)
        except (ValueError, RecursionError):  # as a rule, because the piece ends within an object
            more = file.read(max(2**18, len(text) - at)) if len(text) - at < LONGEST_CELL else ""
            if more:
                text, at = text[at:] + more, 0
                continue
            if text[at:].strip() != "]":
                yield Row(f"review {number}", {}, "no whole JSON object, and the file cannot be read on from here")
            return
        whole = isinstance(row, dict)
        yield Row(f"review {number}", row if whole else {}, "" if whole else "not a JSON object")
        number += 1


def _table_file(path: Path, suffix: str, text: str, only_text: bool) -> ReviewFile:
    """A Parquet or Arrow file. A class label is given by its name, whatever its number is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if suffix == ".parquet":
        # Without the buffer a column of a whole row group would be read at once.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        schema, total = file.schema_arrow, file.metadata.num_rows
    else:
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = map(file.get_batch, range(file.num_record_batches))
        except pa.ArrowInvalid:
            batches = file = pa.ipc.open_stream(pa.memory_map(str(path)))
        schema, total = file.schema, None
    column = need_column(path, schema.names, TEXT, text)
    kinds = {one.name: one.type.value_type if pa.types.is_dictionary(one.type) else one.type for one in schema}
    strings = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
    if kinds[column] not in strings:
        raise CourseError(f"The column {column!r} of {path} holds {kinds[column]} values; expected are texts.")
    names = [column] if only_text else [name for name in schema.names if schema.names.count(name) == 1]
    if suffix == ".parquet":
        batches = file.iter_batches(batch_size=64, columns=names)
    classes, read = _class_names(schema.metadata), 0

    def values(name: str, cells: Any) -> list:
        if kinds[name] in strings:  # read as bytes, because not all of them need be UTF-8
            texts = cells.cast(pa.large_binary()).to_pylist()
            return [value if value is None else value.decode("utf-8", "surrogateescape") for value in texts]
        return [classes.get(name, {}).get(value, value) if name in classes else value for value in cells.to_pylist()]

    def rows() -> Iterator[Row]:
        nonlocal read
        for batch in batches:
            for part in (batch.slice(start, 64) for start in range(0, len(batch), 64)):
                for cells in zip(*(values(name, part.column(name)) for name in names), strict=True):
                    read += 1
                    yield Row(f"row {read}", dict(zip(names, cells, strict=True)))

    return ReviewFile(path, rows(), lambda: read / max(1, total) if total is not None else None, column)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, dict[int, str]]:
    """The names of classes by their numbers for each class label, as ``datasets`` notes them in a file's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: dict(enumerate(feature["names"])) for name, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError):
        return {}
