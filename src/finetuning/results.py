"""The rows of ``results.json``, as a table and in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from numpy import format_float_positional as digits


@dataclass(frozen=True)
class ResultRow:
    """What was measured of a method: a row of the results table. None stands for what was not measured."""

    lesson: str  # its two digits
    method: str
    accuracy: float  # share of right answers on the test reviews
    accuracy_low: float  # of its 95 % interval, by Wilson
    accuracy_high: float
    f1: float  # of the positive class; of more than two labels the mean over them
    n_test: int  # test reviews
    train_seconds: float | None = None
    train_reviews_per_second: float | None = None
    predict_reviews_per_second: float | None = None
    parameters: int | None = None
    stage: int | None = None  # of ZeRO
    world_size: int | None = None  # ranks that trained it
    bytes_per_rank: dict[str, int] | None = None  # component of the training state -> bytes
    peak_rss_bytes: int | None = None  # of the process that trained it
    peak_device_bytes: int | None = None


@dataclass(frozen=True)
class Results:
    """What a run keeps in ``results.json``."""

    run: dict[str, Any]  # profile, model, dataset, limit, seed, started, seconds, hardware, versions
    rows: list[ResultRow]

    def until(self, lesson: str) -> "Results":
        """What was known at the end of a lesson, so that it does not tell what the next ones show after a whole run."""
        return Results(self.run, [row for row in self.rows if row.lesson <= lesson])


def results_table(results: Results, *, price_per_hour: float | None = None) -> pd.DataFrame:
    """The results as a pandas DataFrame for reading: one line per method, measured values rounded, intervals in words.

    With the price of an hour of this machine also the memory at its peak and the cost of predicting 1,000 reviews.
    """
    lines = []
    for row in results.rows:
        line = {
            "lesson": row.lesson,
            "method": row.method,
            "accuracy": f"{row.accuracy:.3f}",
            "95 % interval": f"{row.accuracy_low:.3f} to {row.accuracy_high:.3f}",
            "F1": f"{row.f1:.3f}",
            "test reviews": f"{row.n_test:,}",
            "training": "none" if row.train_seconds is None else f"{row.train_seconds:.1f} s",
            "predicts per second": _count(row.predict_reviews_per_second),
            "parameters": _count(row.parameters),
        }
        if price_per_hour is not None:
            peak, speed = row.peak_device_bytes or row.peak_rss_bytes, row.predict_reviews_per_second
            line["trained per second"] = _count(row.train_reviews_per_second)
            line["peak memory"] = "-" if peak is None else f"{peak / 2**20:,.0f} MiB"
            cost = None if speed is None else price_per_hour / 3.6 / speed  # written out: no price is read as 2.6e-06
            line["cost per 1,000"] = "-" if cost is None else digits(cost, precision=2, fractional=False, trim="-")
        lines.append(line)
    return pd.DataFrame(lines, index=[""] * len(lines))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, a line per row."""
    head, *lines = ("| " + " | ".join(row) + " |" for row in (columns, *rows))
    return "\n".join([head, "|" + "---|" * len(columns), *lines])


def caption(results: Results) -> str:
    """One line under every table and plot: model, data, seed and hardware of the run."""
    run = results.run
    return f"{run['model']} on {run['dataset']}, seed {run['seed']}, {name_machine(run['hardware'])}"


def name_machine(hardware: dict[str, Any]) -> str:
    """The GPU of a machine (as ``this_machine`` describes it), or its cores and processor."""
    return hardware["gpu"] or f"{hardware['cores']} cores of {hardware['processor']}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def verdict(first: ResultRow, second: ResultRow) -> str:
    """A sentence that compares two methods as far as their intervals allow."""
    ahead, behind = (first, second) if first.accuracy >= second.accuracy else (second, first)
    names = [f"{row.method} ({row.accuracy:.3f})" for row in (ahead, behind)]
    if ahead.accuracy_low > behind.accuracy_high:
        return f"{names[0]} is better than {names[1]}: their 95 % intervals do not overlap."
    stands, and_ = ("is ahead of", "but") if ahead.accuracy > behind.accuracy else ("is level with", "and")
    return (
        f"{names[0]} {stands} {names[1]} on these {first.n_test:,} test reviews, {and_} their 95 % intervals overlap: "
        "these numbers alone do not settle it."
    )


def gain_sentences(results: Results) -> list[str]:
    """What fine-tuning gained over the other methods in this run, whichever way it came out."""
    rows = {row.method: row for row in results.rows}
    others = [rows[method] for method in ("tfidf", "from_scratch") if method in rows and "trainer" in rows]
    return [f"By this run, {verdict(rows['trainer'], other)}" for other in others]


def rows_by_stage(results: Results) -> list[ResultRow]:
    """The rows that hold counted bytes of ZeRO's stages, in their order; none where a stage is missing."""
    rows = {row.method: row for row in results.rows}
    stages = [rows[method] for stage in range(4) if (method := f"deepspeed_zero{stage}") in rows]
    return stages if len(stages) == 4 and all(row.bytes_per_rank for row in stages) else []


def duration(seconds: float | None) -> str:
    """Seconds in words, as minutes from 100 on; empty where they were not measured."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
