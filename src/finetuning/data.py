"""Lesson 01: read, clean, check, split and measure reviews."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, concatenate_datasets
from sklearn.feature_extraction.text import HashingVectorizer
from transformers import PreTrainedTokenizerBase

from finetuning.batching import token_rows
from finetuning.errors import CourseError
from finetuning.files import sealed_aside
from finetuning.profiles import MOST_LABELS, USUAL_COLUMNS, Columns, Profile
from finetuning.reviews import KNOWN, LABEL, LABEL_WORDS, TEXT, clean_text, need_column
from finetuning.sources import EXPECTED, LABELS, read_place

TOKENS = ("text", "label", "input_ids", "attention_mask", "labels")  # columns that the lessons make
LEAST_TRAIN = 5  # reviews of each label in train
LEAST_HELD = 2  # reviews of each label in validation and in test
LEAST_ROWS = 34  # reviews in train: an epoch of less than two batches is none
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"))  # soft hyphen, space of no width, byte order mark
NUMBER = r"(-?\d+(?:\.\d+)?)( ?stars?)?"


def load_reviews(
    place: str, revision: str | None = None, *, limit: int = 0, seed: int = 1, columns: Columns = USUAL_COLUMNS
) -> DatasetDict:
    """Reviews as a DatasetDict with ``train``, ``test`` and, where the source has one, ``validation``.

    ``place`` is a file (CSV and its kin, JSON, Parquet, Arrow), a folder with ``train`` and ``test`` files of these
    kinds, or with folders of text files by class, or one by ``save_to_disk``, or a Hub id (``revision`` pins it).
    Columns ``text`` (str) and ``label`` (a ClassLabel, whose ``names`` are the label words: negative and positive, or
    2 to 20 of the data's own), found by ``columns`` or their usual names; further columns are kept. A single file is
    split 80/20 into train and test. ``limit`` caps train and test each, stratified by label. Raises CourseError, naming
    the place, what was found and what is expected. Used in lesson 01.
    """
    splits = DatasetDict(_with_labels(place, read_place(place, revision, columns), columns))
    whole = "test" in splits
    for name, split in splits.items():
        _check_split(split, f"{place} ({name})", name, LEAST_TRAIN if whole else 2 * LEAST_TRAIN)
    if not whole:
        splits = split_off(splits, "test", 0.2, seed)
    for name in splits if limit else ():
        size = limit if name != "validation" else max(len(label_words(splits[name])) * LEAST_HELD, limit // 5)
        splits[name] = take(splits[name], size, seed, LEAST_HELD)
        _check_split(splits[name], f"Cut to LIMIT={limit}, {place} ({name})", name)
    return splits


def _with_labels(place: str, splits: dict[str, Dataset], columns: Columns) -> dict[str, Dataset]:
    """The splits with a text in ``text`` and a class in ``label``; CourseError on the first row without them."""
    read, labelled, between = {}, {}, 0
    for name, split in splits.items():
        where, names = f"{place} ({name})", split.column_names
        text = need_column(where, names, TEXT, columns.text)
        try:
            label = need_column(where, [column for column in names if column != text], LABEL, columns.label)
        except CourseError as error:
            if name == "train":
                raise
            raise CourseError(f"{error} Or leave {name} out: it is then cut from train.") from None
        gone = [column for column in names if column in (text, label, *TOKENS)]
        read[name] = split[text][:], _labels_as_text(split, where, label), split.remove_columns(gone)
    found = {word for _, words, _ in read.values() for word in words}
    try:
        numbers, classes, rule, left = _label_rule(found, label, columns)
    except CourseError as error:
        raise CourseError(f"{place}: {error}") from None
    for name, (texts, words, rest) in read.items():
        for row, (review, word) in enumerate(zip(texts, words, strict=True), 1):
            wrong = "" if word in numbers else f"the label is {repr(word[:40]) if word else 'missing'}; {EXPECTED}"
            if not wrong and numbers[word] is not None and not str(review or "").strip():
                wrong = f"the text is {review!r}; give it a text or take the row out"
            if wrong:
                raise CourseError(f"{place} ({name}), review {row}: {wrong}.")
        kept = [row for row, word in enumerate(words) if numbers[word] is not None]
        between += len(words) - len(kept)
        parts = [Dataset.from_dict({"text": [texts[row] for row in kept]}), rest.select(kept)]
        own = {"label": [numbers[words[row]] for row in kept]}
        parts.insert(1, Dataset.from_dict(own, features=Features({"label": ClassLabel(names=[*classes])})))
        labelled[name] = concatenate_datasets([part for part in parts if part.column_names], axis=1)
    if (text, label) != ("text", "label") or rule:
        rule = f"; {rule}, {between:,} {left}" if rule else ""
        print(f"text from column {text!r}, label from {label!r}{rule}")
    return labelled


def _labels_as_text(split: Dataset, where: str, column: str) -> list[str]:
    """The labels as text, without what cannot be seen; those of a class label by their names, a missing one as ""."""
    feature, values = split.features[column], split[column][:]
    if several := [value for value in values if isinstance(value, (list, dict))]:
        raise CourseError(f"{where}: {column!r} holds {str(several[0])[:40]}; expected is one label for each review.")
    names = dict(enumerate(getattr(feature, "names", None) or ()))
    texts = (str(names.get(value, "" if value is None else value)).translate(UNSEEN) for value in values)
    plain = (clean_text(normalize("NFC", text)) for text in texts)
    return ["" if text.lower() in KNOWN["missing"] else text for text in plain]


def _label_rule(
    found: set[str], column: str, columns: Columns
) -> tuple[dict[str, int | None], Sequence[str], str, str]:
    """For each label of the data its class or None (left out), the label words, and the rule in words where it is own.

    Labels that cannot be understood are missing. As in IMDb's own labels, up to 4 of 10 is negative and from 7
    positive; of five stars it is up to 2 and from 4; ``columns`` has two other numbers, or words. Labels that are no
    numbers, and neither negative nor positive, are classes of their own, in the order of the alphabet.
    """
    numbers = {word: number for word in found if (number := re.fullmatch(NUMBER, word.lower()))}
    values = {word: float(number[1]) for word, number in numbers.items()}
    given, chosen, plain = set(values.values()), columns.words(), {word: _plain(word) for word in found}
    known = {word: LABELS[word.lower()] for word in found if word.lower() in LABELS}
    if chosen:
        return _named(plain, chosen)
    if columns.rating:
        low, high = map(float, columns.rating.split(","))
    elif len(known) == len(found - {""}):
        return known, LABEL_WORDS, "", ""
    elif not given:
        names = {word.lower(): word for word in sorted(found - {""}, reverse=True)}
        return _named(plain, {word: word for _, word in sorted(names.items())})
    elif words := found - {"", *known, *numbers} if not known else ():
        both = f"words, as {min(words)[:40]!r}, and numbers, as {min(numbers)!r}"
        raise CourseError(f"the labels are {both}; LABELS= names those that are meant.")
    elif given == {-1, 1}:
        low, high = -1.0, 1.0
    else:
        stars = (
            any(number[2] for number in numbers.values()) or re.sub(r"[\W_]", "", column).lower() in KNOWN["ratings"]
        )
        five, ten = 4 <= max(given) <= 5 and min(given) >= 5 - max(given), 5 < max(given) <= 10 and min(given) >= 0
        if not stars or not (five or ten):
            return known, LABEL_WORDS, "", ""
        low, high = (2.0, 4.0) if five else (4.0, 7.0)
    labels = {word: 0 if value <= low else 1 if value >= high else None for word, value in values.items()}
    rule = f"up to {low:g} is negative, from {high:g} positive"
    return labels, LABEL_WORDS, rule, "between are left out (RATING=low,high sets this)"


def _plain(label: str) -> str:
    """A label in small letters; a number of stars as the number."""
    number = re.fullmatch(NUMBER, label.lower())
    return f"{float(number[1]):g}" if number else label.lower()


def _named(
    plain: Mapping[str, str], chosen: Mapping[str, str]
) -> tuple[dict[str, int | None], Sequence[str], str, str]:
    """As ``_label_rule``, for ``chosen`` labels and their words. ``plain``: the data's labels as they are compared."""
    words, wanted = list(dict.fromkeys(chosen.values())), {_plain(label): word for label, word in chosen.items()}
    shown = ", ".join([repr(word[:40]) for word in sorted(plain)[:8]] + ["..."] * (len(plain) > 8))
    if missing := [label for label in chosen if _plain(label) not in plain.values()]:
        raise CourseError(
            f"no review has the label {missing[0]!r}; found are {shown}. LABELS= names them as they stand."
        )
    if braces := [word for word in words if re.search("[{}]", word)]:
        raise CourseError(
            f"the label {braces[0][:40]!r} has braces, a prompt's signs; LABELS=old=new,... names it anew."
        )
    if not 2 <= len(words) <= MOST_LABELS:
        way = f"learnt can be 2 to {MOST_LABELS}: name those to keep by LABELS=a,b,c, or the labels' column by LABEL="
        raise CourseError(f"the reviews' labels are {shown} ({len(words):,} in all); {way}.")
    labels = {label: words.index(wanted[same]) if same in wanted else None for label, same in plain.items() if label}
    return labels, words, f"labels {', '.join(words)}", "of other labels are left out (LABELS= names and orders them)"


def label_words(split: Dataset) -> Sequence[str]:
    """The words of a split's labels 0, 1, …: those of its class label, or negative and positive."""
    return getattr(split.features["label"], "names", LABEL_WORDS)


def _check_split(split: Dataset, where: str, name: str, least: int = LEAST_TRAIN) -> None:
    words = label_words(split)
    counts = np.bincount(np.array(split["label"][:], dtype=int), minlength=len(words))
    if counts.min() < (needed := least if name == "train" else LEAST_HELD):
        *some, last = (f"{count:,} {word[:40]}" for word, count in zip(words, counts, strict=True))
        needs = f"at least {needed} of each are needed to learn from, to choose by and to measure on"
        way = "; LABELS=a,b,c names those to keep" if len(words) > 2 else ""
        raise CourseError(f"{where} holds {', '.join(some)} and {last} reviews; {needs}{way}.")
    if name == "train" and len(split) < LEAST_ROWS:
        raise CourseError(f"{where} holds {len(split)} reviews; at least {LEAST_ROWS} are needed to learn from.")


def take(split: Dataset, size: int, seed: int, least: int = 0) -> Dataset:
    """At most ``size`` reviews, stratified by label and drawn with a seed, in a shuffled order.

    Of each label at least ``least``, or all where there are fewer.
    """
    if len(split) <= size:
        return split.shuffle(seed=seed)
    return split.select(_draw(np.array(split["label"]), size, seed, least))


def _draw(labels: np.ndarray, size: int, seed: int, least: int) -> np.ndarray:
    """Rows of ``size`` reviews, each label with its share of them, and with ``least`` where it has so many."""
    rng, there = np.random.default_rng(seed), np.bincount(labels)
    counts, fewest = there.copy(), np.minimum(there, least)
    for label in range(len(there))[:0:-1]:  # of what the later labels leave, its share; the first takes the rest
        left, among = size - counts[label + 1 :].sum(), there[: label + 1].sum()
        share = round(left * (there[label] / max(1, among)))
        counts[label] = min(max(share, fewest[label]), left - fewest[:label].sum())
    counts[0] = size - counts[1:].sum()
    rows = [rng.choice(np.flatnonzero(labels == i), count, replace=False) for i, count in enumerate(counts)]
    return rng.permutation(np.concatenate(rows))


def split_off(splits: DatasetDict, name: str, share: float, seed: int) -> DatasetDict:
    """Move a stratified share of ``train`` to a split of its own.

    Used where a source has no test or validation split. Raises CourseError where too few of a label are left in train.
    """
    train = splits["train"]
    size = max(len(label_words(train)) * LEAST_HELD, round(len(train) * share))
    held = _draw(np.array(train["label"]), size, seed, LEAST_HELD)
    rest = train.select(np.setdiff1d(np.arange(len(train)), held))
    _check_split(rest, f"After the split {name!r} is taken from it, train", "train")
    return DatasetDict({**splits, "train": rest, name: train.select(held)})


def clean(splits: DatasetDict) -> DatasetDict:
    """The splits with every text cleaned by ``clean_text``."""
    return splits.map(lambda batch: {"text": [clean_text(text) for text in batch["text"]]}, batched=True)


MARKS = re.compile(r"""[.,;:!?…"'‘’“”«»()\[\]_–—。，、！？；：؟،।]|\b-\b|(?<=\s)-+(?=\s)""")


def fingerprint(text: str) -> str:
    """What counts as the same review: the words alone, lower-cased, without stops, quotes and brackets.

    Other signs (a plus, an emoji, the marks of other scripts) belong to a word; a text of nothing else is taken whole.
    """
    lower = text.lower()
    return " ".join(MARKS.sub(" ", lower).split()) or lower


def find_duplicates(splits: Mapping[str, Dataset]) -> dict[str, list[tuple[int, str]]]:
    """Rows to drop, so that no review stands twice: a dict of split -> list of (row, split of the copy that stays).

    The test split is kept whole but for its own repeats; a review that stands in test as well is dropped from train and
    validation, because a model that met it in training would be tested on what it remembers. Texts that differ in
    their marks and in their label are no copies. Tokenized splits are compared by their tokens. Used in lesson 01.
    """
    first: dict[object, str] = {}  # what is compared -> the split of its first copy
    drop: dict[str, list[tuple[int, str]]] = {}
    for name in (name for name in ("test", "validation", "train") if name in splits):
        drop[name], split = [], splits[name]
        tokens = split["input_ids"][:] if "input_ids" in split.column_names else [None] * len(split)
        for row, (text, label, ids) in enumerate(zip(split["text"][:], split["label"][:], tokens, strict=True)):
            keys = [tuple(ids)] if ids else [(fingerprint(text), label), text.lower()]
            if copy := next((first[key] for key in keys if key in first), None):
                drop[name].append((row, copy))
            first |= {key: first.get(key, name) for key in keys}
    return drop


def find_near_copies(
    splits: Mapping[str, Dataset], least: float = 0.5
) -> list[tuple[float, tuple[str, int], tuple[str, int]]]:
    """Pairs of reviews that share much of their wording: a list of (overlap, (split, row), (split, row)).

    The overlap is Jaccard's: of the runs of five words that stand in either text, the share that stands in both (Broder
    1997, "On the resemblance and containment of documents"). Pairs from ``least`` up, the closest first; within a pair
    test comes before validation, and validation before train. Used in lesson 01.
    """
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
    """The splits without the rows that ``find_duplicates`` names. Raises CourseError where too few are left."""
    kept, cut = {}, "the same tokens (of a script that the tokenizer does not know, or cut after one beginning)"
    for name, split in splits.items():
        gone = {row for row, _ in drop[name]}
        kept[name] = split.select([row for row in range(len(split)) if row not in gone])
        same = cut if "input_ids" in split.column_names else "the same text"
        _check_split(kept[name], f"Without {len(gone):,} reviews of {same} as others, {name}", name)
    return DatasetDict(kept)


def prepare(settings: Profile, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """All that lesson 01 does to a profile's reviews, in one go: its splits, ready for ``save_splits``."""
    place, limit, seed = (settings.reviews, settings.reviews_revision), settings.limit, settings.seed
    splits = clean(load_reviews(*place, limit=limit, seed=seed, columns=settings.columns))
    if "validation" not in splits:
        splits = split_off(splits, "validation", 0.1, seed)
    splits = drop_rows(splits, find_duplicates(splits))
    words = [*label_words(splits["train"])]  # not looked up in each batch: ``map`` would take a digest of all splits

    def tokenize(batch: dict) -> dict:
        rows = token_rows(tokenizer, batch["text"], prompt=settings.prompt, max_length=settings.max_length)
        labels = tokenizer(text_target=[words[label] for label in batch["label"]])
        return {"input_ids": rows, "labels": labels["input_ids"]}

    tokenized = splits.map(tokenize, batched=True)
    return drop_rows(tokenized, find_duplicates(tokenized))


def save_splits(splits: DatasetDict, folder: Path) -> Path:
    """``splits.save_to_disk`` under a temporary name, sealed, then renamed: a lesson never reads half a data set."""
    shutil.rmtree(folder, ignore_errors=True)
    with sealed_aside(folder, "then run this lesson again") as partial:
        splits.save_to_disk(partial)
    return partial.rename(folder)
