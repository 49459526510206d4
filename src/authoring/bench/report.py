"""What the bench measured, as Markdown and as figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.plots import BLUE, GREY, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LONG = 200  # tokens; the share of the peak is stated for batches wider than this


def peak_type(found: dict) -> str:
    """The type whose peak counts: bf16, or fp32 on a machine that is not fast at bf16."""
    return "bf16" if "bf16" in found["peak"] else "fp32"


def _ladder(rows, unit="reviews/s"):
    lines = [f"| change | {unit} (lowest-highest) | step | times the usual |", "|---|---|---|---|"]
    for row in rows:
        speed, times = row["speed"], row["times"]
        lines.append(
            f"| {row['name']} | {speed['median']:.2f} ({speed['low']:.2f}-{speed['high']:.2f}) "
            f"| {'-' if row['name'].startswith('tried') else 'x ' + format(row['step'], '.2f')} | {times['median']:.1f} ({times['low']:.1f}-{times['high']:.1f}) |"
        )
    return lines


def _shares(shares):
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.005)


def table(found: dict) -> str:
    """Everything that was measured, as Markdown."""
    machine, training, prediction = found["machine"], found["training"], found["prediction"]
    kept = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    peaks = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in found["peak"].items())
    lines = [
        "# Speed, measured side by side",
        "",
        f"{found['model']}, on {found['reviews']} cut at {found['limit']} tokens; {machine['gpu'] or machine['processor']}, "
        f"{machine['cores']} cores, {machine['system']}; {kept}. Medians of {found['rounds']} rounds, seed {found['seed']}. "
        f"Peak of matrix products: {peaks}.",
        "",
        "## Training",
        *_ladder(training["factors"]),
        *(line for line in _ladder(training["beside"])[2:]),
        "",
    ]
    told = [
        f"{name} {share['median']:.0%} ({share['low']:.0%}-{share['high']:.0%})"
        for name, share in training["share_of_peak"].items()
        if share
    ]
    if told:
        lines += [
            f"Share of the {peak_type(found)} peak on batches over {LONG} tokens, padding counted: {', '.join(told)}.",
            "",
        ]
    lines += [f"Time by operator, {name}: {_shares(shares)}." for name, shares in training["profile"].items()]
    lines += ["", "## Prediction", *_ladder(prediction["factors"]), ""]
    lines.append(
        f"`generate` wrote {prediction['tokens_written_by_generate']:.1f} tokens per review. Answers as the usual way gives them: "
        + ", ".join(f"{name} {share:.0%}" for name, share in prediction["same_answers"].items())
        + f". The last way computes at {prediction['share_of_peak']:.0%} of the {peak_type(found)} peak, counted as the unpacked model would."
    )
    lines.append(
        f"The usual way computes at {prediction['usual_share_of_fp32_peak']:.0%} of the fp32 peak. Ten times its speed, without padding, "
        f"would need {prediction['ten_times_would_need'] / 1e9:.0f} GFLOP/s."
    )
    lines += [f"Time by operator, {name}: {_shares(shares)}." for name, shares in prediction["profile"].items()]
    if accuracy := found.get("accuracy"):
        lines += [
            "",
            "## Accuracy",
            f"{accuracy['model']} fine-tuned on Pocket Reviews, {accuracy['n_test']} test reviews, mean of {accuracy['seeds']} seeds: "
            f"usual recipe {accuracy['usual']:.4f}, ours {accuracy['ours']:.4f}, difference {accuracy['ours_minus_usual']:+.4f} "
            f"(standard error {accuracy['standard_error']:.4f}, paired by seed); predicted in 8 bits {accuracy['int8']:.4f}, "
            f"{accuracy['same_answers_int8']:.2%} of the answers as before.",
        ]
    lines += ["", "## How cost grows", "| with | exponent | seconds |", "|---|---|---|"]
    for name, fit in found["growth"].items():
        pairs = ", ".join(f"{size:,.0f}: {taken:.3f}" for size, taken in zip(fit["sizes"], fit["seconds"], strict=True))
        error = "two sizes only" if fit["standard_error"] is None else f"standard error {fit['standard_error']:.2f}"
        lines.append(f"| {name} | {fit['exponent']:.2f} ({error}) | {pairs} |")
    data = found["data"]
    lines += ["", f"## Data: cleaning and tokenizing {data['reviews']:,} reviews", "| way | reviews/s |", "|---|---|"]
    lines += [f"| {name} | {speed:,.0f} |" for name, speed in data["reviews_per_second"].items()]
    tfidf = data["tfidf_training"]
    lines += ["", f"TF-IDF and logistic regression learn {tfidf['reviews']:,} reviews in {tfidf['seconds']:.1f} s."]
    lines += ["", "## Start-up", "| what | seconds (lowest-highest) |", "|---|---|"]
    lines += [
        f"| {name} | {taken['median']:.2f} ({taken['low']:.2f}-{taken['high']:.2f}) |"
        for name, taken in found["start_up"].items()
    ]
    if course := found["course"]:
        kinds = list(next(iter(course.values())))
        lines += [
            "",
            "## The headless course",
            f"| lesson | seconds | {' | '.join(kinds)} |",
            "|---|---|" + "---|" * len(kinds),
        ]
        whole = {kind: sum(mine[kind] for mine in course.values()) for kind in kinds}
        for name, mine in {**course, "all": whole}.items():
            total = sum(mine.values())
            lines.append(
                f"| {name} | {total:.0f} | " + " | ".join(f"{mine[kind] / total:.0%}" for kind in kinds) + " |"
            )
    return "\n".join(lines) + f"\n\nThe bench took {found['minutes']:.0f} minutes.\n"


def figures(found: dict, folder: Path) -> None:
    """The waterfalls and the growth curves as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from finetuning import plots

    for part in ("training", "prediction"):
        fig = plots.plot_factors(found[part]["factors"], f"Where the speed of {part} comes from")
        for kind in ("png", "svg"):
            fig.savefig(folder / f"{part}.{kind}")
    fig = plot_growth(found["growth"])
    for kind in ("png", "svg"):
        fig.savefig(folder / f"growth.{kind}")


def plot_growth(fits: dict[str, dict]) -> Figure:
    """Seconds of a training step against each size, both axes logarithmic; ``fits``: name -> as ``growth.growth_exponent`` gives it."""
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
