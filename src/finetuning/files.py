"""Files that are whole or not there: atomic writing, seals, checksums."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetuning.errors import CourseError

SEAL = "sha256.json"


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path`` and rename it, so that a reader never meets half a file."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        way = "free some space or check the folder's rights, then run again."
        raise CourseError(f"Could not write {path}: {error.strerror}; {way}") from error


def digest(content: Any) -> str:
    """The SHA-256 of anything that JSON can hold, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(place: str, pattern: str) -> str | None:
    """The SHA-256 of a file, or of a folder's files of the pattern, hidden ones and cards aside; None for neither."""
    path = Path(place)
    if not path.is_absolute() or not path.exists():
        return None
    if path.is_file():
        return file_digest(path)
    files = sorted(one for one in path.glob(pattern) if one.is_file() and one.name[0] != "." and one.suffix != ".md")
    return digest({file.relative_to(path).as_posix(): file_digest(file) for file in files})


def seal(folder: Path, **notes: Any) -> None:
    """Write the checksums of all files under ``folder`` to its ``sha256.json``, with ``notes`` beside them.

    The last thing that is done to a folder: without its seal nothing in it is trusted.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    sums = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_atomically(folder / SEAL, json.dumps({"files": sums, **notes}, indent=1))


@contextlib.contextmanager
def sealed_aside(folder: Path, again: str) -> Iterator[Path]:
    """A folder beside ``folder`` to write into, sealed at the end of the ``with`` block.

    What then becomes of it is the caller's. When it cannot be written it is removed, and CourseError says so and what
    to do ``again``.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        seal(partial)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CourseError(f"Could not write {folder}: {error.strerror or error}; free some space, {again}.") from error


def find_damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words: no seal, a file gone or changed. None: it is whole."""
    try:
        sums = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        for name, kept in sums.items():
            if not (folder / name).is_file():
                return f"{name} is gone"
            if file_digest(folder / name) != kept:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    return None


def with_digest(content: dict) -> dict:
    """``content`` with its own checksum as ``sha256``, for a file that carries it inside."""
    return content | {"sha256": digest(content)}


def verify_digest(text: str) -> dict:
    """What ``with_digest`` was given, from a file's text; ValueError when the checksum is missing or does not fit."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
        raise ValueError("its checksum does not fit")
    return content
