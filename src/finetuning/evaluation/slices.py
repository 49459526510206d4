"""Lesson 07: where does a model fail? Accuracy on parts of the test reviews."""

import numpy as np
import pandas as pd
from datasets import Dataset

from finetuning.evaluation.pairs import ALPHA, holm, paired
from finetuning.metrics import wilson_interval

SMALL = 50  # reviews; a smaller slice has an interval of twenty points or more, unless nearly all are right


def slices(split: Dataset) -> tuple[dict[str, np.ndarray], list[str]]:
    """Questions put to the test reviews: a dict of name -> bool array, and a list of sentences on what cannot be asked.

    By length in words (three parts of about equal size), and by trait and rating where the reviews have them.
    """
    questions, missing = {}, []
    words = np.array([len(text.split()) for text in split["text"]])
    short, long = np.quantile(words, [1 / 3, 2 / 3]).astype(int)
    questions[f"up to {short} words"] = words <= short
    questions[f"{short + 1} to {long} words"] = (words > short) & (words <= long)
    questions[f"over {long} words"] = words > long
    traits, ratings = column(split, "traits", list), np.array(column(split, "rating", (int, float, str)))
    if names := sorted({trait for several in traits for trait in several if isinstance(trait, str)}):
        questions |= {name: np.array([name in several for several in traits]) for name in names}
    else:
        missing.append("these reviews name no traits, so there are no slices by trait")
    if 0 < len(set(ratings.tolist())) <= 10:
        questions |= {f"rating {value}": ratings == value for value in sorted(set(ratings.tolist()))}
    else:
        missing.append("these reviews have no rating in up to ten steps, so there are no slices by rating")
    return {name: rows for name, rows in questions.items() if rows.any()}, missing


def column(split: Dataset, name: str, kind: type | tuple[type, ...]) -> list:
    """A column's values if all are of a kind, else none: a column of somebody else's data may only share its name."""
    values = split[name][:] if name in split.column_names else []
    return values if all(isinstance(value, kind) for value in values) else []


def slice_table(slices: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Accuracy of two methods on each slice with Wilson's intervals: a DataFrame, a line per slice.

    ``right``: dict of two methods -> bool array. ``only`` counts the reviews that one method alone got right, ``p`` is
    McNemar's on the slice, ``p of all`` the same adjusted for the number of slices, ``note`` warns of slices under
    SMALL reviews.
    """
    first, second = right
    lines = []
    for name, rows in slices.items():
        line = {"slice": name, "reviews": int(rows.sum())}
        for method in (first, second):
            answers = right[method][rows]
            low, high = wilson_interval(answers)
            line |= {method: answers.mean(), f"{method} low": low, f"{method} high": high}
        pair = paired(right[first][rows], right[second][rows])
        line |= {f"only {first}": pair.only_first, f"only {second}": pair.only_second, "p": pair.p}
        lines.append(line)
    table = pd.DataFrame(lines)
    table["p of all"] = holm(table["p"])
    table["note"] = np.where(table["reviews"] < SMALL, f"small: under {SMALL} reviews", "")
    return table


def slice_lines(table: pd.DataFrame) -> list[str]:
    """What a ``slice_table`` allows to say: sentences on the slices where one method is better, and on chance."""
    first, second = (name.removesuffix(" low") for name in table.columns if name.endswith(" low"))
    lines = []
    for better, worse in ((first, second), (second, first)):
        ahead = table[table[better] > table[worse]]
        clear = ahead[ahead["p"] < ALPHA]
        names = [f"{row['slice']} ({row[better]:.2f} against {row[worse]:.2f})" for _, row in clear.iterrows()]
        lines.append(f"{better} is better than {worse}: {'; '.join(names) or 'nowhere'}.")
        unclear = ahead[ahead["p"] >= ALPHA]["slice"]
        lines.append(f"{better} is ahead of {worse}, but not clearly: {', '.join(unclear) or 'nowhere'}.")
    kept = table[table["p of all"] < ALPHA]["slice"].tolist()
    lines.append(
        f"{len(table)} slices were searched: by chance alone up to {ALPHA * len(table):.1f} of them would look like "
        f"that on average; after Holm's correction these remain: {', '.join(kept) or 'none'}."
    )
    return lines
