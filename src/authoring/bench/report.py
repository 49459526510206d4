"""What the bench measured, as Markdown and as figures."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from authoring.bench.front_door import FEW
from finetuning import plots
from finetuning.plots import BLUE, GREY, figure
from finetuning.results import markdown_table
from finetuning.speed.contenders import factors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LONG = 200  # tokens; the share of the peak is stated for batches wider than this


def peak_type(measured: dict) -> str:
    """The type whose peak counts: bf16, or fp32 on a machine that is not fast at bf16."""
    return "bf16" if "bf16" in measured["peak"] else "fp32"


def _between(spread: dict, digits: int) -> str:
    """A median with the lowest and the highest, as ``contenders.spread`` gives them."""
    median, low, high = (f"{spread[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}-{high})"


def _ladder(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        step = "-" if row["name"].startswith("tried") else f"x {row['step']:.2f}"
        lines.append((row["name"], _between(row["speed"], 2), step, _between(row["times"], 1)))
    return markdown_table(("change", "reviews/s (lowest-highest)", "step", "times the usual"), lines)


def _shares(profiles: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for name, shares in profiles.items():
        shown = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.005)
        lines.append(f"Time by operator, {name}: {shown}.")
    return lines


def table(measured: dict) -> str:
    """Everything that was measured, as Markdown."""
    lines = [*_head(measured), "", *_training(measured), "", *_prediction(measured), "", *_front_door(measured)]
    if accuracy := measured.get("accuracy"):
        lines += ["", *_accuracy(accuracy)]
    lines += ["", *_growth(measured["growth"]), "", *_data(measured["data"]), "", *_start_up(measured["start_up"])]
    if course := measured["course"]:
        lines += ["", *_course(course)]
    return "\n".join(lines) + f"\n\nThe bench took {measured['minutes']:.0f} minutes.\n"


def _head(measured: dict) -> list[str]:
    machine = measured["machine"]
    kept = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    peaks = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in measured["peak"].items())
    return [
        "# Speed, measured side by side",
        "",
        f"{measured['model']}, on {measured['reviews']} cut at {measured['limit']} tokens; "
        f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['system']}; {kept}. Medians of "
        f"{measured['rounds']} rounds, seed {measured['seed']}. Peak of matrix products: {peaks}.",
    ]


def _training(measured: dict) -> list[str]:
    training = measured["training"]
    lines = ["## Training", _ladder([*training["factors"], *training["beside"]]), ""]
    shares = [
        f"{name} {share['median']:.0%} ({share['low']:.0%}-{share['high']:.0%})"
        for name, share in training["share_of_peak"].items()
        if share
    ]
    if shares:
        wide = f"on batches over {LONG} tokens, padding counted"
        lines += [f"Share of the {peak_type(measured)} peak {wide}: {', '.join(shares)}.", ""]
    return lines + _shares(training["profile"])


def _prediction(measured: dict) -> list[str]:
    prediction = measured["prediction"]
    same = ", ".join(f"{name} {share:.0%}" for name, share in prediction["same_answers"].items())
    return [
        "## Prediction",
        _ladder(prediction["factors"]),
        "",
        f"`generate` wrote {prediction['tokens_written_by_generate']:.1f} tokens per review. Answers as the usual "
        f"recipe gives them: {same}. The last recipe computes at {prediction['share_of_peak']:.0%} of the "
        f"{peak_type(measured)} peak, counted as the unpacked model would.",
        f"The usual recipe computes at {prediction['usual_share_of_fp32_peak']:.0%} of the fp32 peak. Ten times its "
        f"speed, without padding, would need {prediction['ten_times_would_need'] / 1e9:.0f} GFLOP/s.",
        *_shares(prediction["profile"]),
    ]


def _front_door(measured: dict) -> list[str]:
    ways = measured["front_door"]
    gains = factors({name: way["speeds"] for name, way in ways.items()})
    rows = [
        (
            name, _between(gain["speed"], 1), _between(gain["times"], 1), f"{median(way['starts']):.1f}",
            f"{way['same_answers']:.1%}",
        )
        for gain, (name, way) in zip(gains, ways.items(), strict=True)
    ]  # fmt: skip
    few = f"seconds for {FEW} reviews"
    head = ("whole commands", "reviews/s (lowest-highest)", "times the usual", few, "same answers")
    lacking = "" if any(name.startswith("CTranslate2") for name in ways) else " CTranslate2 is not installed here."
    lacking += "" if "predict --int8" in ways else " 8-bit integers do not work here."
    return [
        "## Prediction from a terminal",
        markdown_table(head, rows),
        "",
        f"A fresh process each; the time for {FEW} reviews, mostly its start, is taken off the speed.{lacking}",
    ]


def _accuracy(accuracy: dict) -> list[str]:
    eight = "8-bit integers do not work here."
    if "int8" in accuracy:
        alike = accuracy["same_answers_int8"]
        eight = f"Predicted in 8 bits {accuracy['int8']:.4f}, {alike:.2%} of the answers as before."
    return [
        "## Accuracy",
        f"{accuracy['model']} fine-tuned on Pocket Reviews, {accuracy['n_test']} test reviews, mean of "
        f"{accuracy['seeds']} seeds: usual recipe {accuracy['usual']:.4f}, ours {accuracy['ours']:.4f}, difference "
        f"{accuracy['ours_minus_usual']:+.4f} (standard error {accuracy['standard_error']:.4f}, paired by seed). "
        f"{eight}",
    ]


def _growth(fits: dict[str, dict]) -> list[str]:
    rows = []
    for name, fit in fits.items():
        pairs = ", ".join(f"{size:,.0f}: {taken:.3f}" for size, taken in zip(fit["sizes"], fit["seconds"], strict=True))
        error = "two sizes only" if fit["standard_error"] is None else f"standard error {fit['standard_error']:.2f}"
        rows.append((name, f"{fit['exponent']:.2f} ({error})", pairs))
    return ["## How cost grows", markdown_table(("with", "exponent", "seconds"), rows)]


def _data(data: dict) -> list[str]:
    tfidf = data["tfidf_training"]
    rows = [(name, f"{speed:,.0f}") for name, speed in data["reviews_per_second"].items()]
    return [
        f"## Data: cleaning and tokenizing {data['reviews']:,} reviews",
        markdown_table(("method", "reviews/s"), rows),
        "",
        f"TF-IDF and logistic regression learn {tfidf['reviews']:,} reviews in {tfidf['seconds']:.1f} s.",
    ]


def _start_up(seconds: dict[str, dict]) -> list[str]:
    rows = [(name, _between(taken, 2)) for name, taken in seconds.items()]
    return ["## Start-up", markdown_table(("what", "seconds (lowest-highest)"), rows)]


def _course(course: dict[str, dict[str, float]]) -> list[str]:
    kinds = list(next(iter(course.values())))
    whole = {kind: sum(lesson[kind] for lesson in course.values()) for kind in kinds}
    rows = []
    for name, seconds in {**course, "all": whole}.items():
        total = sum(seconds.values())
        rows.append((name, f"{total:.0f}", *(f"{seconds[kind] / total:.0%}" for kind in kinds)))
    return ["## The headless course", markdown_table(("lesson", "seconds", *kinds), rows)]


def save_figures(measured: dict, folder: Path) -> None:
    """Write the waterfalls and the growth curves to ``folder`` as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")

    for part in ("training", "prediction"):
        fig = plots.plot_factors(measured[part]["factors"], f"Where the speed of {part} comes from")
        for kind in ("png", "svg"):
            fig.savefig(folder / f"{part}.{kind}")
    fig = plot_growth(measured["growth"])
    for kind in ("png", "svg"):
        fig.savefig(folder / f"growth.{kind}")


def plot_growth(fits: dict[str, dict]) -> Figure:
    """Seconds of a training step against each size, both axes logarithmic.

    ``fits``: name -> as ``growth.growth_exponent`` gives it.
    """
    fig, axes = figure("How a training step grows", width=3.6 * len(fits) + 1, columns=len(fits))
    for ax, (name, fit) in zip(np.atleast_1d(axes), fits.items(), strict=True):
        sizes, seconds = np.array(fit["sizes"], float), np.array(fit["seconds"])
        middle = np.exp(np.log(seconds).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** fit["exponent"]
        ax.plot(sizes, middle, color=GREY, linestyle=":", linewidth=2)
        ax.plot(sizes, seconds, "o", color=BLUE, markersize=8)
        ax.set(xscale="log", yscale="log", xlabel=name)
        ax.set_title(f"size to the power {fit['exponent']:.2f}", fontsize=12)
        ax.set_xticks(sizes, [f"{size / 1e6:.3g}M" if size >= 1e6 else f"{size:g}" for size in sizes])
        ax.set_yticks(seconds, [f"{value:.2g}" for value in seconds])
        ax.minorticks_off()
    np.atleast_1d(axes)[0].set_ylabel("seconds")
    return fig
