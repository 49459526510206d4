"""A small raw data set for lesson 01: ``python -m authoring raw-reviews``.

Reviews as a scraper would leave them, made from Pocket Reviews' training split, so that every check of the lesson has
something to find. The same training split gives the same files.
"""

import html
import json
import random
import re
from collections import Counter

from authoring.blocks import fill_block
from authoring.pocket.corpus import read_reviews
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.profiles import RAW_REVIEWS

COMMAND = "python -m authoring raw-reviews"
TEST = {1: 14, 0: 6}  # label -> reviews
TRAIN = {1: 34, 0: 14}  # before the copies are added, two in three of which are positive
# What the copies in train are copies of, and how: split of the original, word for word or nearly.
COPIES = [("train", False)] * 5 + [("test", False)] * 3 + [("train", True)] * 3 + [("test", True)]
# Praise and blame are even up to their second sentence; the first of them that is in train is cut there.
UNDECIDABLE = ("pr-0524", "pr-0131", "pr-0250")
BREAKS = ("<br /><br />", " ", "<BR>", "   ", "<br>\n")  # between sentences


def make() -> dict[str, list[dict]]:
    """The raw set: split -> rows with ``id`` (of the review it was made from), ``text`` and ``label``."""
    reviews = [row for row in read_reviews() if row["split"] == "train"]
    source = {row["id"]: {key: row[key] for key in ("id", "text", "label")} for row in reviews}
    known = [name for name in UNDECIDABLE if name in source]
    if not known:
        raise CourseError(f"None of {', '.join(UNDECIDABLE)} is a training review any more; name another to cut short.")
    undecidable = source.pop(known[0])
    undecidable["text"] = " ".join(sentences(undecidable["text"])[:2]) + " ... read more"
    rng = random.Random(1)
    pool = [row for row in source.values() if 30 <= len(row["text"].split()) <= 60 and len(sentences(row["text"])) > 3]
    rng.shuffle(pool)
    test, train = _draw(pool, TEST), [undecidable]
    train += _draw(pool, {**TRAIN, undecidable["label"]: TRAIN[undecidable["label"]] - 1})
    copied = {"train": train[1:], "test": test[:]}
    for i, (split, nearly) in enumerate(COPIES):
        original = _draw(copied[split], {int(i % 3 > 0): 1})[0]
        train.append({**original, "text": (edited if nearly else _retyped)(original["text"], i)})
    for rows in (train, test):
        rng.shuffle(rows)
        for i, row in enumerate(rows):
            row["text"] = dirty(row["text"], i)
    return {"train": train, "test": test}


def sentences(text: str) -> list[str]:
    """The sentences of a text, roughly."""
    return re.split(r"(?<=[.!?]) ", text)


def edited(text: str, i: int) -> str:
    """The text as somebody posts it again: the last sentence gone, one of two remarks in its place."""
    return " ".join([*sentences(text)[:-1], ("Edit: typos.", "Also posted elsewhere.")[i % 2]])


def dirty(text: str, i: int) -> str:
    """The text as the ``i``-th page of a site would hold it: HTML or surplus blanks between sentences, entities."""
    text = html.escape(text) if i % 3 else text
    return BREAKS[i % len(BREAKS)].join(sentences(text))


def _retyped(text: str, i: int) -> str:
    """The same words, written in one of three ways."""
    return (text, text.upper(), text.replace(",", " -"))[i % 3]


def _draw(pool: list[dict], wanted: dict[int, int]) -> list[dict]:
    """The first reviews of each label, so many as are wanted, taken out of the pool."""
    drawn = [row for label, count in wanted.items() for row in [r for r in pool if r["label"] == label][:count]]
    pool[:] = [row for row in pool if row not in drawn]
    return [dict(row) for row in drawn]


def card_figures(splits: dict[str, list[dict]]) -> str:
    """The figures of the card as Markdown."""
    kinds = Counter(COPIES)
    lines = ["| | train | test |", "|---|---|---|"]
    for name, value in (("reviews", lambda row: 1), ("positive", lambda row: row["label"])):
        lines.append(f"| {name} | " + " | ".join(str(sum(map(value, rows))) for rows in splits.values()) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"- Copies in train: {kinds['train', False]} of training reviews, {kinds['test', False]} of test reviews.",
            f"- Near-copies in train: {kinds['train', True]} of training, {kinds['test', True]} of test reviews.",
            f"- One review cut short so that nobody can tell its label: `{splits['train'][_shortest(splits)]['id']}`.",
        ]
    )


def _shortest(splits: dict[str, list[dict]]) -> int:
    return min(range(len(splits["train"])), key=lambda row: len(splits["train"][row]["text"]))


def main(arguments: list[str]) -> None:
    """Write the two splits and the figures of the card."""
    splits = make()
    for name, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(RAW_REVIEWS / f"{name}.jsonl", lines)
    card = RAW_REVIEWS / "README.md"
    write_atomically(card, fill_block(card.read_text(encoding="utf-8"), "figures", card_figures(splits), COMMAND))
    print(f"raw reviews written to {RAW_REVIEWS}")
