"""Lesson 01: read, clean, check, split and measure reviews."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.errors import CourseError, hub_error
from finetuning.files import sealed_aside
from finetuning.reviews import FORMATS, not_utf8, open_reviews

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "negative": 0, "positive": 1, "neg": 0, "pos": 1}
EXPECTED = "expected are a text in column 'text' and 0/1, negative/positive or neg/pos in column 'label'"
LONGEST = 100_000  # characters; what follows in a longer text is cut when it is cleaned


def clean_text(text: str) -> str:
    """A review as plain text: HTML breaks and entities resolved, white space collapsed, at most LONGEST characters."""
    text = re.sub(r"<br\s*/?>", " ", text[:LONGEST], flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", html.unescape(text)).strip()


def load_reviews(place: str, revision: str | None = None, *, limit: int = 0, seed: int = 1) -> DatasetDict:
    """Reviews as a DatasetDict with ``train``, ``test`` and, where the source has one, ``validation``.

    ``place`` is a CSV, JSON Lines or Parquet file, a folder with ``train`` and ``test`` files of these kinds, or a Hub
    id (``revision`` pins it). Columns ``text`` (str) and ``label`` (0 negative, 1 positive); further columns are kept.
    A single file is split 80/20 into train and test. ``limit`` caps train and test each, stratified by label.
    Raises CourseError, naming the place, what was found and what is expected. Used in lesson 01.
    """
    path = Path(place)
    if path.is_dir():
        splits = {name: _read_file(file) for name, file in _split_files(path).items()}
    elif path.exists() or path.suffix in FORMATS:
        splits = {"train": _read_file(path)}
    else:
        splits = _read_hub(place, revision)
    from datasets import DatasetDict

    splits = DatasetDict({name: _checked(split, f"{place} ({name})") for name, split in splits.items()})
    whole = "test" in splits
    for name, split in splits.items():
        _check_classes(split, f"{place} ({name})", 2 if name != "train" else 5 if whole else 10)
    if not whole:
        splits = split_off(splits, "test", 0.2, seed)
    if limit:
        for name, size in (("train", limit), ("test", limit), ("validation", max(2, limit // 5))):
            if name in splits:
                splits[name] = take(splits[name], size, seed)
    return splits


def _split_files(folder: Path) -> dict[str, Path]:
    files = {}
    for name in ("train", "validation", "test"):
        if candidates := sorted(file for file in folder.glob(f"{name}*") if file.suffix in FORMATS):
            files[name] = candidates[0]
    if "train" not in files:
        kinds = ", ".join(f"train{suffix}" for suffix in FORMATS)
        names = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise CourseError(f"{folder} holds {names}; expected is a file of training reviews there ({kinds}).")
    return files


def _read_file(path: Path) -> Dataset:
    """A file as a Dataset. Raises CourseError on the first row that cannot be read."""
    from datasets import Dataset

    if path.is_file() and not path.stat().st_size:
        raise CourseError(f"{path} is empty; {EXPECTED}.")
    rows = []
    for row in open_reviews(path).rows:
        bad = [column for column, cell in row.cells.items() if isinstance(cell, str) and not_utf8(cell)]
        if row.problem or bad:
            problem = row.problem or f"not UTF-8 text in the column {bad[0]!r}; save it as UTF-8"
            raise CourseError(f"{path}, {row.place}: {problem}.")
        rows.append(row.cells)
    if not rows:
        raise CourseError(f"{path} has no reviews, only a head line; {EXPECTED}.")
    try:
        return Dataset.from_dict({column: [row.get(column) for row in rows] for column in rows[0]})
    except (ValueError, TypeError) as error:  # a column of JSON Lines that holds now this, now that
        raise CourseError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _read_hub(place: str, revision: str | None) -> dict[str, Dataset]:
    """A data set of the Hub by its id; one sentence when it cannot be reached."""
    from datasets import load_dataset

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise CourseError(
            f"{place!r} is neither a file, a folder nor a Hub id such as stanfordnlp/imdb; check what was given "
            "as reviews."
        )
    try:
        splits = load_dataset(place, revision=revision)
    except Exception as error:  # the libraries below raise a dozen kinds of errors for a network that is not there
        raise hub_error("data set", place, error, instead="REVIEWS") from error
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}


def _checked(split: Dataset, where: str) -> Dataset:
    """The split with texts and 0/1 labels, or a sentence on the first row that has neither."""
    missing = [column for column in ("text", "label") if column not in split.column_names]
    if missing:
        raise CourseError(f"{where} has the columns {', '.join(map(str, split.column_names))}; {EXPECTED}.")
    labels = []
    for number, (text, label) in enumerate(zip(split["text"], split["label"], strict=True), 1):
        if not isinstance(text, str) or not text.strip():
            raise CourseError(f"{where}, review {number}: the text is {text!r}; give it a text or take the row out.")
        word = str(label).strip().lower()
        if word not in LABELS:
            raise CourseError(f"{where}, review {number}: the label is {label!r}; {EXPECTED}.")
        labels.append(LABELS[word])
    return split.remove_columns("label").add_column("label", labels)


def _check_classes(split: Dataset, where: str, needed: int) -> None:
    counts = np.bincount(split["label"], minlength=2)
    if counts.min() < needed:
        raise CourseError(
            f"{where} holds {counts[0]} negative and {counts[1]} positive reviews; at least {needed} of each are "
            "needed to learn from, to choose by and to measure on."
        )


def take(split: Dataset, size: int, seed: int) -> Dataset:
    """At most ``size`` reviews, stratified by label and drawn with a seed, in a shuffled order."""
    if len(split) <= size:
        return split.shuffle(seed=seed)
    labels, rng = np.array(split["label"]), np.random.default_rng(seed)
    positive = round(size * labels.mean())
    counts = enumerate((size - positive, positive))
    rows = [rng.choice(np.flatnonzero(labels == label), count, replace=False) for label, count in counts]
    return split.select(rng.permutation(np.concatenate(rows)))


def split_off(splits: DatasetDict, name: str, share: float, seed: int) -> DatasetDict:
    """Move a stratified share of ``train`` to a split of its own, where a source has no test or validation split."""
    from datasets import DatasetDict

    train = splits["train"]
    held = take(train.add_column("_row", range(len(train))), max(2, round(len(train) * share)), seed)
    rest = np.setdiff1d(np.arange(len(train)), held["_row"])
    return DatasetDict({**splits, "train": train.select(rest), name: held.remove_columns("_row")})


def clean(splits: DatasetDict) -> DatasetDict:
    """The splits with every text cleaned by ``clean_text``."""
    return splits.map(lambda batch: {"text": [clean_text(text) for text in batch["text"]]}, batched=True)


def fingerprint(text: str) -> str:
    """What counts as the same review: the words alone, lower-cased."""
    return " ".join(re.findall(r"\w+", text.lower()))


def find_duplicates(splits: Mapping[str, Dataset]) -> dict[str, list[tuple[int, str]]]:
    """Rows to drop, so that no review stands twice: a dict of split -> list of (row, split of the copy that stays).

    The test split is kept whole but for its own repeats; a review that stands in test as well is dropped from train and
    validation, because a model that met it in training would be tested on what it remembers. Used in lesson 01.
    """
    home: dict[str, str] = {}
    drop: dict[str, list[tuple[int, str]]] = {}
    for name in (name for name in ("test", "validation", "train") if name in splits):
        drop[name] = []
        for row, text in enumerate(splits[name]["text"]):
            key = fingerprint(text)
            if key in home:
                drop[name].append((row, home[key]))
            else:
                home[key] = name
    return drop


def find_near_copies(
    splits: Mapping[str, Dataset], least: float = 0.5
) -> list[tuple[float, tuple[str, int], tuple[str, int]]]:
    """Pairs of reviews that share much of their wording: a list of (overlap, (split, row), (split, row)).

    The overlap is Jaccard's: of the runs of five words that stand in either text, the share that stands in both (Broder
    1997, "On the resemblance and containment of documents"). Pairs from ``least`` up, the closest first; within a pair
    test comes before validation, and validation before train. Used in lesson 01.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    names = [name for name in ("test", "validation", "train") if name in splits]
    places = [(name, row) for name in names for row in range(len(splits[name]))]
    vectorizer = HashingVectorizer(
        ngram_range=(5, 5), n_features=2**24, binary=True, norm=None, alternate_sign=False, token_pattern=r"\w+"
    )
    runs = vectorizer.transform([text for name in names for text in splits[name]["text"]])  # 1 where a run stands
    sizes = np.diff(runs.indptr)
    found = []
    for start in range(0, len(places), 500):
        shared = (runs[start : start + 500] @ runs.T).tocoo()
        first, second = shared.row + start, shared.col
        overlap = shared.data / (sizes[first] + sizes[second] - shared.data)
        for i in np.flatnonzero((first < second) & (overlap >= least)):
            found.append((float(overlap[i]), places[first[i]], places[second[i]]))
    return sorted(found, key=lambda pair: -pair[0])


def drop_rows(splits: DatasetDict, drop: dict[str, list[tuple[int, str]]]) -> DatasetDict:
    """The splits without the rows that ``find_duplicates`` names."""
    from datasets import DatasetDict

    kept = {}
    for name, split in splits.items():
        gone = {row for row, _ in drop[name]}
        kept[name] = split.select([row for row in range(len(split)) if row not in gone])
    return DatasetDict(kept)


def save_splits(splits: DatasetDict, folder: Path) -> Path:
    """``splits.save_to_disk`` under a temporary name, sealed, then renamed: a lesson never reads half a data set."""
    shutil.rmtree(folder, ignore_errors=True)
    with sealed_aside(folder, "then run this lesson again") as partial:
        splits.save_to_disk(partial)
    return partial.rename(folder)
