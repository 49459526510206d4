"""The lessons' figures in one style: colour-blind safe (Okabe and Ito 2008), axes labelled, readable on a slide."""

import re
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from finetuning.profiles import ASSETS
from finetuning.results import ResultRow
from finetuning.trainer import COIN_TOSS, curves

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
# What a rank holds: one colour for each part, in the charts as in the figures of ``img/``.
PARTS = {
    "parameters": ("parameters", BLUE),
    "gradients": ("gradients", ORANGE),
    "master": ("master copy", PURPLE),
    "optimizer": ("moments", GREEN),
    "buffers": ("buffers", GREY),
}


def figure(
    title: str, *, width: float = 8, height: float = 4, columns: int = 1, grid: str = "both"
) -> tuple[Figure, Any]:
    """A titled figure in the course's style: (figure, axes); ``grid``: the axes with grid lines."""
    plt.style.use(ASSETS / "course.mplstyle")
    plt.rcParams["axes.grid.axis"] = grid
    fig, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    fig.suptitle(title, x=0.01, ha="left", fontsize=14)
    return fig, axes


def plot_lengths(lengths: np.ndarray, max_length: int) -> Figure:
    """Histogram of review lengths in tokens with the limit marked."""
    fig, ax = figure("How long are the reviews?")
    ax.hist(lengths, bins=40, color=BLUE)
    ax.axvline(max_length, color=ORANGE, linewidth=2, label=f"limit of this profile: {max_length} tokens")
    median = np.median(lengths)
    ax.axvline(median, color="black", linestyle=":", linewidth=2, label=f"median: {median:.0f} tokens")
    ax.set(xlabel="tokens per review, with prompt and </s>", ylabel="reviews")
    ax.legend()
    return fig


def plot_truncation(limits: list[int], cut: np.ndarray, lost: np.ndarray, max_length: int) -> Figure:
    """Share of reviews cut and of tokens lost for each limit."""
    fig, ax = figure("What does a shorter limit cost?")
    ax.plot(limits, 100 * cut, marker="o", color=BLUE, label="reviews that lose their end")
    ax.plot(limits, 100 * lost, marker="s", color=ORANGE, label="tokens lost")
    ax.axvline(max_length, color=GREY, linestyle=":", linewidth=2, label="limit of this profile")
    ax.set(xlabel="limit in tokens", ylabel="percent", ylim=(-2, 102))
    ax.legend()
    return fig


def plot_padding(tokens: dict[str, int], real: int) -> Figure:
    """Bars of the tokens computed per epoch by padding strategy, the real ones marked."""
    fig, ax = figure("Tokens computed in one epoch", height=0.8 + 0.8 * len(tokens), grid="x")
    names = list(tokens)
    ax.barh(names, [tokens[name] for name in names], color=ORANGE, label="padding")
    ax.barh(names, [real] * len(names), color=BLUE, label="real tokens")
    for i, name in enumerate(names):
        ax.text(tokens[name], i, f" {1 - real / tokens[name]:.0%} padding", va="center")
    ax.set(xlabel="tokens", xlim=(0, 1.25 * max(tokens.values())))
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.legend(loc="lower right")
    return fig


def plot_words(told: dict[str, list[tuple[str, float]]]) -> Figure:
    """The terms with the largest weights towards each label; of two labels the first one's to the left."""
    fig, ax = figure("What the bag of words goes by", height=0.3 * sum(map(len, told.values())) + 1, grid="x")
    if len(told) == 2:
        (first, low), (second, high) = told.items()
        told = {second: high, first: [(term, -weight) for term, weight in low[::-1]]}
    at, names = 0, list[str]()
    for i, (word, pairs) in enumerate(told.items()):
        terms, weights = zip(*pairs, strict=True)
        ax.barh(range(at, at + len(pairs)), weights, color=COLOURS[i % len(COLOURS)], label=f"towards {word}")
        at, names = at + len(pairs), [*names, *terms]
    ax.set(xlabel="weight in the logistic regression", yticks=range(at), yticklabels=names, ylim=(at - 0.5, -0.5))
    ax.legend()
    return fig


def plot_confusion(matrix: np.ndarray, words: Sequence[str], title: str) -> Figure:
    """A confusion matrix with counts; rows are the truth."""
    more, longest = max(0, len(words) - 3), max(map(len, words))
    crowded = len(words) * longest > 30
    size = 5 + 0.5 * more + 0.1 * longest * crowded
    fig, ax = figure(title, width=size, height=size - 1)
    shown = ConfusionMatrixDisplay(np.asarray(matrix), display_labels=words)
    look = {"text_kw": {"fontsize": 16 if more < 3 else 9}, "xticks_rotation": 90 if crowded else 0}
    shown.plot(ax=ax, cmap="Blues", values_format=",", colorbar=False, **look)
    ax.set(xlabel="predicted", ylabel="true")
    ax.grid(visible=False)
    return fig


def _log_sizes(ax: Any, sizes: list[int]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()


def plot_learning_curve(sizes: list[int], scores: np.ndarray, floor: float) -> Figure:
    """Accuracy against the number of training reviews (log scale), mean and range over the repeats.

    ``scores``: shape (sizes, repeats). No band where repeats are NaN (all reviews make one sample).
    """
    fig, ax = figure("Accuracy of the bag of words by training reviews")
    low, high = scores.min(axis=1), scores.max(axis=1)
    ax.fill_between(sizes, low, high, where=high > low, color=BLUE, alpha=0.2, label="range over samples")
    ax.plot(sizes, np.nanmean(scores, axis=1), marker="o", color=BLUE, label="mean")
    ax.axhline(floor, color=GREY, linestyle=":", linewidth=2, label="majority class")
    _log_sizes(ax, sizes)
    ax.set(xlabel="training reviews", ylabel="accuracy on test")
    ax.legend()
    return fig


def plot_by_labels(sizes: list[int], accuracies: dict[str, list[float]]) -> Figure:
    """Accuracy of several methods (name -> one for each size) against the number of labelled reviews (log scale)."""
    fig, ax = figure("How many labels until it pays?")
    for colour, marker, (name, curve) in zip(COLOURS, "os^Dv", accuracies.items(), strict=False):
        ax.plot(sizes, curve, marker=marker, color=colour, label=name)
    _log_sizes(ax, sizes)
    ax.set(xlabel="labelled reviews", ylabel="accuracy on test reviews")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def plot_training(runs: dict[str, list[dict]], blind: float = COIN_TOSS) -> Figure:
    """Loss and validation accuracy by epoch. ``runs``: dict of name -> the Trainer's log history.

    ``blind``: the loss of blind guesses, which is drawn as a line (``trainer.blind_loss``).
    The axis of the loss ends a little over the highest validation loss: from random weights the first steps cost many
    times as much, and would press all that matters into one line at the bottom.
    """
    fig, (left, right) = figure("Training", width=11, height=4.8, columns=2)
    top = blind
    for colour, (name, history) in zip(COLOURS, runs.items(), strict=False):
        measured = curves(history)
        left.plot(*measured["loss"], color=colour, label=f"{name}: training")
        left.plot(*measured["eval_loss"], color=colour, linestyle="--", marker="o", label=f"{name}: validation")
        right.plot(*measured["eval_accuracy"], color=colour, marker="o", label=name)
        top = max(top, *measured["eval_loss"][1])
    left.axhline(blind, color=GREY, linestyle=":", linewidth=2, label=f"blind guesses: {blind:.3f}")
    left.set(xlabel="epoch", ylabel="cross-entropy per label token", ylim=(0, 1.25 * top))
    right.set(xlabel="epoch", ylabel="accuracy on validation")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return fig


def plot_results(rows: Sequence[ResultRow]) -> Figure:
    """Accuracy of each method with its 95 % interval, in the order of the lessons."""
    fig, ax = figure("Accuracy on the test reviews, with 95 % intervals", height=1.2 + 0.5 * len(rows))
    for i, row in enumerate(rows):
        ax.plot([row.accuracy_low, row.accuracy_high], [i, i], color=BLUE, linewidth=3)
        ax.plot(row.accuracy, i, "o", color=BLUE, markersize=9)
        ax.text(row.accuracy_high, i, f"  {row.accuracy:.3f}", va="center")
    ax.set(xlabel="accuracy", yticks=range(len(rows)), yticklabels=[row.method for row in rows])
    ax.set_xlim(min(0.4, *(row.accuracy_low - 0.05 for row in rows)), 1.05)
    ax.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top, none cut at the edge
    return fig


def plot_losses(runs: dict[str, list[float]], title: str = "Training loss, run by run") -> Figure:
    """Training loss by optimizer step of several runs drawn over one another. ``runs``: dict of name -> losses."""
    fig, ax = figure(title)
    styles = ("-", "--", "-.", ":", (0, (1, 3)))
    for i, (name, losses) in enumerate(runs.items()):
        width = 7 - 1.5 * i if i < 4 else 1.5  # the first is the broadest, so that those on top leave it visible
        steps = range(1, len(losses) + 1)
        ax.plot(steps, losses, linestyle=styles[i % 5], color=COLOURS[i % 5], linewidth=width, label=name)
    ax.set(xlabel="optimizer step", ylabel="cross-entropy per label token", ylim=(0, None))
    ax.legend(ncols=2, fontsize=10)
    return fig


def plot_rank_memory(counted: dict[str, dict[str, dict[str, int]]], title: str = "What each rank holds") -> Figure:
    """Stacked bars of bytes per rank. ``counted``: group (a precision, say) -> stage -> component -> bytes."""
    fig, axes = figure(title, width=11, columns=len(counted), grid="y")
    top = max(sum(parts.values()) for stages in counted.values() for parts in stages.values()) / 2**20
    for ax, (group, stages) in zip(np.atleast_1d(axes), counted.items(), strict=True):
        floor = np.zeros(len(stages))
        for part, (name, colour) in PARTS.items():
            heights = np.array([parts.get(part, 0) for parts in stages.values()]) / 2**20
            ax.bar(list(stages), heights, bottom=floor, color=colour, label=name, width=0.7)
            floor += heights
        for i, height in enumerate(floor):
            ax.text(i, height, f"{height:.3g}", ha="center", va="bottom")
        ax.set(xlabel=f"{group}: ZeRO stage", ylabel="MiB per rank", ylim=(0, 1.15 * top))
    np.atleast_1d(axes)[-1].legend(fontsize=10)
    return fig


def plot_step_cost(seconds: dict[str, float], sent: dict[str, int | None]) -> Figure:
    """Seconds per optimizer step and bytes that each rank sends in it: name -> value (None: not measured)."""
    fig, (left, right) = figure("What a step costs", width=11, columns=2, grid="y")
    left.bar(list(seconds), list(seconds.values()), color=BLUE, width=0.7)
    left.set(xlabel="run", ylabel="seconds per optimizer step")
    right.bar(list(sent), [(value or 0) / 2**20 for value in sent.values()], color=ORANGE, width=0.7)
    right.set(xlabel="run", ylabel="MiB sent per rank and step")
    for ax in (left, right):
        ax.tick_params(axis="x", rotation=20)
    return fig


def plot_family_memory(
    needed: dict[int, dict[str, dict[int, int]]], names: list[str], cards: tuple[int, ...] = (16, 24, 40, 80)
) -> Figure:
    """Memory per GPU against the number of parameters, one panel per number of GPUs, both axes logarithmic.

    ``needed``: number of GPUs -> strategy -> {parameters: bytes}, as ``planner.family_bytes`` gives it; ``names`` of
    the models, smallest first; ``cards``: usual sizes in GB (1e9 bytes), drawn as lines.
    """
    fig, axes = figure("What each GPU must hold to train a T5", width=13, height=5.8, columns=len(needed))
    axes = np.atleast_1d(axes)
    every = [size / 1e9 for lines in needed.values() for sizes in lines.values() for size in sizes.values()]
    strategies = dict.fromkeys(strategy for lines in reversed(needed.values()) for strategy in lines)
    signs = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), ("black", "v"), ("#882255", "p"))
    looks = dict(zip(strategies, signs, strict=False))
    for ax, (gpus, lines) in zip(axes, needed.items(), strict=True):
        first, *_, last = parameters = list(next(iter(lines.values())))
        for card in cards:
            ax.axhline(card, color=GREY, linestyle=":", linewidth=1)
            ax.text(0.85 * first, card, f"{card} GB", color=GREY, fontsize=11, va="bottom")
        label_at = 0.0
        for strategy, sizes in sorted(lines.items(), key=lambda line: line[1][last]):
            colour, marker = looks[strategy]
            ax.plot(parameters, [size / 1e9 for size in sizes.values()], color=colour, marker=marker)
            # beside the end of the line, higher where labels would meet
            label_at = max(sizes[last] / 1e9, 1.5 * label_at)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(1.5 * last, label_at, strategy.replace("_", " "), color=colour, va="center", fontsize=13, bbox=box)
        ax.set(xscale="log", yscale="log", xlim=(0.8 * first, 40 * last), ylim=(0.7 * min(every), 2 * max(every)))
        ax.set_xticks(parameters, [name.split("/")[-1].removeprefix("t5-") for name in names], fontsize=12)
        ax.set_xlabel(f"model, by its {first / 1e6:,.0f} to {last / 1e6:,.0f} million parameters", fontsize=11)
        ax.set_title(f"{gpus} GPU{'s' if gpus > 1 else ''}", fontweight="bold")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.minorticks_off()
        ax.grid(visible=False)
    axes[0].set_ylabel("GB per GPU (1e9 bytes)")
    return fig


def plot_price(rows: Sequence[ResultRow]) -> Figure:
    """Accuracy with its interval against training time and against parameters, both on logarithmic axes.

    Methods that were not trained, or have no parameters, stand at "none"; the stages of DeepSpeed share a sign, as they
    train the same model.
    """
    fig, axes = figure("What does accuracy cost?", width=13, height=5.2, columns=2)
    group = {row.method: re.sub(r"^deepspeed_.*", "deepspeed, all stages", row.method) for row in rows}
    signs = zip((*COLOURS, "black") * 2, ("o", "s", "D", "^", "v", "x", "P", "*") * 2, strict=False)
    looks = dict(zip(dict.fromkeys(group.values()), signs, strict=False))
    for ax, key, label in zip(axes, ("train_seconds", "parameters"), ("training, seconds", "parameters"), strict=True):
        shown = [row for row in rows if key == "train_seconds" or getattr(row, key) is not None]
        known = [value for row in shown if (value := getattr(row, key))] or [1]
        none = min(known) / 8
        for row in shown:
            (colour, marker), x = looks[group[row.method]], getattr(row, key) or none
            ax.plot([x, x], [row.accuracy_low, row.accuracy_high], color=colour, linewidth=1.5, alpha=0.6)
            ax.plot(x, row.accuracy, marker, color=colour, markersize=10, markerfacecolor="none", markeredgewidth=2)
        powers = range(int(np.ceil(np.log10(min(known)) - 0.3)), int(np.ceil(np.log10(max(known)))) + 1)
        absent = {none: "none"} if any(not getattr(row, key) for row in shown) else {}
        ticks = absent | {10.0**power: f"{10.0**power:,.10g}" for power in powers}
        ax.set(xscale="log", xlabel=label, ylabel="accuracy on test, with 95 % interval", xlim=(none / 2, None))
        ax.set_xticks(list(ticks), list(ticks.values()))
        ax.minorticks_off()
        ax.set_ylim(min(row.accuracy_low for row in rows) - 0.02, max(row.accuracy_high for row in rows) + 0.02)
    points = {"linestyle": "", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 2}
    handles = [axes[0].plot([], [], color=c, marker=m, label=name, **points)[0] for name, (c, m) in looks.items()]
    fig.legend(handles=handles, loc="outside right center", fontsize=11)
    return fig


def plot_reliability(tables: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence by bin. ``tables``: name -> DataFrame of ``calibration.reliability``."""
    fig, (left, right) = figure("Is the model as right as it is sure?", width=11, columns=2)
    low = min(0.5, *(table["from"].min() for table in tables.values()))
    left.plot([low, 1], [low, 1], color=GREY, linestyle=":", linewidth=2, label="as sure as right")
    for i, (colour, (name, table)) in enumerate(zip(COLOURS, tables.items(), strict=False)):
        left.plot(table["confidence"], table["accuracy"], marker="os^"[i % 3], color=colour, label=name)
        left.vlines(table["confidence"], table["low"], table["high"], color=colour, alpha=0.5)
        edges = [*table["from"], table["to"].iloc[-1]]
        right.hist(table["confidence"], edges, weights=table["reviews"], color=colour, histtype="step", linewidth=2)
    left.set(xlabel="mean confidence in a bin", ylabel="share of right answers", ylim=(0, 1.05))
    right.set(xlabel="confidence", ylabel="test reviews")
    plt.setp((left, right), xlim=(low - 0.01, 1.01))
    left.legend(fontsize=10)
    return fig


def plot_coverage(methods: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Accuracy against the share of reviews that are answered. ``methods``: dict of name -> (coverage, accuracy)."""
    fig, ax = figure("Accuracy when the model may abstain")
    for colour, (name, (coverage, accuracy)) in zip(COLOURS, methods.items(), strict=False):
        enough = coverage >= min(0.05, coverage.max())  # the first few reviews make a curve of chance
        ax.plot(coverage[enough], accuracy[enough], color=colour, linewidth=2, label=name)
    ax.set(xlabel="share of reviews answered, the surest first", ylabel="accuracy of the answers", xlim=(0, 1.02))
    ax.legend()
    return fig


def plot_slices(table: pd.DataFrame) -> Figure:
    """Accuracy of two methods by slice with 95 % intervals. ``table``: as ``slices.slice_table`` gives it."""
    methods = [name.removesuffix(" low") for name in table.columns if name.endswith(" low")]
    fig, ax = figure("Where is each of them right?", width=9, height=1.4 + 0.4 * len(table), grid="x")
    for method, colour, marker, shift in zip(methods, (BLUE, ORANGE), "os", (-0.14, 0.14), strict=True):
        at = np.arange(len(table)) + shift
        ax.hlines(at, table[f"{method} low"], table[f"{method} high"], color=colour, linewidth=2, alpha=0.6)
        ax.plot(table[method], at, marker, color=colour, label=method)
    small = np.where(table["note"] == "", "", ", small")
    names = [f"{name} ({n}{note})" for name, n, note in zip(table["slice"], table["reviews"], small, strict=True)]
    ax.set(xlabel="accuracy", yticks=range(len(table)), yticklabels=names, ylim=(len(table) - 0.5, -0.5))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return fig


def plot_factors(rows: list[dict], title: str) -> Figure:
    """A waterfall of speed: each change goes on where the one before ended. ``rows`` of ``contenders.factors``."""
    fig, ax = figure(title, width=9, height=1.2 + 0.55 * len(rows), grid="x")
    before = rows[0]["times"]["median"]
    for i, row in enumerate(rows):
        now = row["times"]["median"]
        ax.barh(i, now - before if i else now, left=before if i else 0, color=BLUE if now >= before else ORANGE)
        ax.plot([row["times"]["low"], row["times"]["high"]], [i, i], color="black", linewidth=1.5)
        words = f"{row['speed']['median']:,.3g} reviews/s" if not i else f"x {row['step']:.2f}  (in all {now:.1f})"
        ax.text(max(now, before, row["times"]["high"]), i, f"  {words}", va="center", fontsize=11)
        before = now
    ax.set(xlabel="times the usual recipe; thin lines: lowest and highest round", yticks=range(len(rows)))
    ax.set_yticklabels([row["name"] for row in rows])
    ax.set_xlim(0, 1.4 * max(row["times"]["high"] for row in rows))
    ax.invert_yaxis()
    return fig
