"""Where reviews come from: a file, a folder in one of the usual layouts, or the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from finetuning.errors import CourseError, first_line, hub_error
from finetuning.profiles import Columns, as_place
from finetuning.reviews import FORMATS, KNOWN, kind, open_reviews, problem_of

LABELS, SPLITS = KNOWN["labels"], KNOWN["splits"]
EXPECTED = (
    "expected are a text in column 'text' and 0/1, negative/positive, neg/pos, True/False or other words and no "
    "numbers in column 'label'; columns of other names are given by TEXT= and LABEL=, ratings by RATING=low,high, "
    "numbers that are classes by LABELS=1,2,3"
)


def read_place(place: str, revision: str | None, columns: Columns) -> dict[str, Dataset]:
    """The splits of a file, a folder or a data set of the Hub, as they are. Raises CourseError where it has none."""
    path = Path(place)
    if not path.is_dir():
        if path.exists() or kind(path):
            return {"train": _read_files([path], columns.text)}
        return _read_hub(as_place(place, "reviews"), revision)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _read_saved(path)
    if any(_class_folders(folder, columns) for folder in (path, path / "train")):
        folders = {name: path / name for name in SPLITS if _class_folders(path / name, columns)} or {"train": path}
        return {name: _read_classes(folder, columns) for name, folder in folders.items()}
    return {name: _read_files(files, columns.text) for name, files in split_files(path).items()}


def _read_saved(folder: Path) -> dict[str, Dataset]:
    """What ``save_to_disk`` of ``datasets`` has written."""
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # pyarrow's, json's and datasets' own
        raise CourseError(f"{folder} holds no whole data set ({first_line(error)}); save it again.") from error
    return _known_splits(saved if isinstance(saved, DatasetDict) else {"train": saved}, folder)


def _known_splits(splits: Mapping[str, Dataset], place: object) -> dict[str, Dataset]:
    known = {name: splits[one] for name, names in SPLITS.items() for one in names[::-1] if one in splits}
    if "train" not in known:
        raise CourseError(f"{place} has the splits {', '.join(splits)}; expected is one named 'train'.")
    return known


def _class_folders(folder: Path, columns: Columns) -> dict[str, Path]:
    """The folders of text files by class: a dict of label word -> folder.

    Those that ``columns`` names; else neg and pos and their like; else, where no file lies beside them, all of them.
    """
    inside = list(folder.iterdir()) if folder.is_dir() else []
    texts = {one.name: one for one in inside if one.is_dir() and one.name[0] != "." and _text_files(one)}
    wanted = {label.lower() for label in columns.words()} or LABELS
    known = {name: one for name, one in texts.items() if name.lower() in wanted}
    splits = {one for names in SPLITS.values() for one in names}
    if known or columns.labels or len(texts) < 2 or splits & {name.lower() for name in texts} or any(map(kind, inside)):
        return known
    return texts


def _text_files(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.suffix.lower() == ".txt" and one.name[0] != ".")


def _read_classes(folder: Path, columns: Columns) -> Dataset:
    rows: dict[str, list] = {"text": [], "label": []}
    found = _class_folders(folder, columns)
    for word, inside in sorted(found.items()):
        for file in _text_files(inside):
            try:
                rows["text"].append(file.read_text(encoding="utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                raise CourseError(f"{file} cannot be read ({error}); save it as UTF-8.") from error
            rows["label"].append(word)
    others = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name not in found)
    if others:
        print(f"{folder}: not read are the folders {', '.join(others)}, whose names are no labels (LABELS= names some)")
    return Dataset.from_dict(rows)


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder, or of its folder ``data``: ``train.csv``, or shards as the Hub names them.

    Raises CourseError where there are none for training, or where more than one could be meant.
    """
    files: dict[str, list[Path]] = {}
    inside = sorted(file for file in folder.iterdir() if kind(file) and not file.name.startswith("."))
    for name, names in SPLITS.items():
        exact, shards, named = (
            [file for file in inside if re.match(f"({'|'.join(names)}){end}", file.name.lower())]
            for end in (r"\.", r"-\d+-of-\d+\.", "(?![a-z])")
        )
        found = exact or shards or named
        shown = ", ".join(file.name for file in found[:5])
        if shards and not exact:
            if len(shards) != int(re.findall(r"\d+", shards[0].name)[1]):
                held = f"{len(shards)} of the shards of {name!r}; all of {shards[0].name} are needed: add the rest"
                raise CourseError(f"{folder} holds {held}.")
        elif len(found) > 1:
            raise CourseError(f"{folder} holds {shown}, and one file of the split {name!r} is expected; leave one.")
        if found:
            files[name] = found
        if others := [file.name for file in named if file not in found]:  # ``named`` holds the others, too
            print(f"{folder}: read is {found[0].name}, not {', '.join(others[:5])}")
    if "train" in files:
        return files
    if (folder / "data").is_dir():
        return split_files(folder / "data")
    kinds = ", ".join(f"train{suffix}" for suffix in FORMATS)
    held = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
    raise CourseError(
        f"{folder} holds {held}; expected is a file of training reviews there ({kinds}), or the folders train/pos and "
        "train/neg with a text file for each review."
    )


def _read_files(paths: list[Path], text: str) -> Dataset:
    """One file or its shards as a Dataset. Raises CourseError on the first row that cannot be read."""
    rows = []
    for path in paths:
        file = open_reviews(path, text=text)
        for row in file.rows:
            if problem := problem_of(row, file.text):
                raise CourseError(f"{path}, {row.place}: {problem}.")
            rows.append(row.cells)
    if not rows:
        raise CourseError(f"{path} has no reviews, only a head line; {EXPECTED}.")
    names = list(dict.fromkeys(column for row in rows for column in row))
    columns = {name: _of_one_kind([row.get(name) for row in rows]) for name in names}
    if nested := [name for name in names if columns[name] is None]:
        print(f"{path}: left out are the columns {', '.join(map(repr, nested[:5]))}, which hold no single values")
    return Dataset.from_dict({name: values for name, values in columns.items() if values is not None})


def _of_one_kind(values: list) -> list | None:
    """The values of a column, as text where they are of several kinds; None where they nest deeper than lists."""
    try:
        found = pa.array(values).type
        return None if pa.types.is_nested(found.value_type if pa.types.is_list(found) else found) else values
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError):
        if any(isinstance(value, (dict, list)) for value in values):
            return None
        return [None if value is None else str(value).encode(errors="replace").decode() for value in values]


def _read_hub(place: str, revision: str | None) -> dict[str, Dataset]:
    """A data set of the Hub by its id. Raises CourseError when it cannot be had."""
    try:
        splits = load_dataset(place, revision=revision)
    except Exception as error:  # the libraries below raise a dozen kinds of errors for a network that is not there
        raise hub_error("data set", place, error, instead="REVIEWS") from error
    return _known_splits(splits, place)
