"""Draw the figures in ``img/`` that the lessons show: ``make figures`` (``python -m authoring figures [folder]``).

Own work, made of boxes and arrows; the padding figure computes its batches. The files come out the same on every run.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from finetuning.workspace import LESSONS, home

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

INK, PAPER, PALE = "#222222", "#FFFFFF", "#F2F2F2"


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "finetuning", "font.family": "DejaVu Sans"})
    fig, ax = plt.subplots(figsize=(width, height), facecolor=PAPER)
    fig.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def _box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    *,
    fill: str = PALE,
    edge: str = GREY,
    color: str = INK,
    size: float = 13,
    weight: str = "normal",
) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = f"round,pad=0,rounding_size={min(0.12, height / 3)}"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=fill, edgecolor=edge, linewidth=1.5))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=color, weight=weight)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 2, "mutation_scale": 18, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def roadmap(lesson: str) -> Figure:
    """The lessons in a row, ``lesson`` lit."""
    names = {"finetune": "fine-tune", "with_t": "with_the_t", "trainer": "Trainer"}
    names |= {"deepspeed": "DeepSpeed", "lora": "LoRA"}
    fig, ax = _canvas(12, 1.35)
    step = 12 / len(LESSONS)
    for i, (number, name) in enumerate(name.split("_", 1) for name in LESSONS):
        colours = {"fill": BLUE, "edge": BLUE, "color": "white", "weight": "bold"} if LESSONS[i] == lesson else {}
        for written, read in names.items():
            name = name.replace(written, read)
        words = textwrap.fill(name.replace("_", " "), 11)
        _box(ax, i * step + 0.13, 0.05, step - 0.33, 1.25, f"{number}\n{words}", size=11.5, **colours)
        if i:
            _arrow(ax, (i * step - 0.18, 0.67), (i * step + 0.12, 0.67), GREY)
    return fig


def two_paths() -> Figure:
    """Training from scratch above, pre-training and fine-tuning below."""
    fig, ax = _canvas(10, 4)
    _box(ax, 0.2, 2.7, 2.2, 0.9, "random\nweights")
    _box(ax, 3.9, 2.7, 2.6, 0.9, "labelled reviews", fill="#FBE3D6", edge=ORANGE)
    _box(ax, 7.6, 2.7, 2.2, 0.9, "classifier", fill="#DDEBF5", edge=BLUE)
    _arrow(ax, (2.4, 3.15), (3.88, 3.15))
    _arrow(ax, (6.5, 3.15), (7.58, 3.15))
    ax.text(0.2, 3.72, "from scratch: the labels must teach everything", fontsize=12, color=GREY)
    _box(ax, 0.2, 0.5, 2.2, 0.9, "random\nweights")
    _box(ax, 2.9, 0.5, 1.7, 0.9, "text\nand tasks", fill="#D9F0E8", edge=GREEN)
    _box(ax, 5.0, 0.5, 1.7, 0.9, "pre-trained\nmodel", fill="#DDEBF5", edge=BLUE)
    _box(ax, 7.1, 0.62, 0.9, 0.66, "few\nlabels", fill="#FBE3D6", edge=ORANGE, size=11)
    _box(ax, 8.3, 0.5, 1.5, 0.9, "classifier", fill="#DDEBF5", edge=BLUE)
    for start, end in ((2.4, 2.88), (4.6, 4.98), (6.7, 7.08), (8.0, 8.28)):
        _arrow(ax, (start, 0.95), (end, 0.95))
    ax.text(0.2, 1.52, "pre-training, once, by somebody", fontsize=12, color=GREY)
    ax.text(7.1, 1.52, "fine-tuning, by you", fontsize=12, color=GREY)
    return fig


def text_to_text() -> Figure:
    """Two prompted inputs, one model, two answers."""
    fig, ax = _canvas(10, 3)
    _box(ax, 0.2, 1.75, 4.4, 0.8, "sentiment: Dull, but I loved it.", fill="#FBE3D6", edge=ORANGE, size=12)
    _box(ax, 0.2, 0.45, 4.4, 0.8, "Dull, but I <extra_id_0> it.", fill="#D9F0E8", edge=GREEN, size=12)
    _box(ax, 5.5, 0.45, 1.5, 2.1, "T5", fill=BLUE, edge=BLUE, color="white", size=18, weight="bold")
    _box(ax, 7.9, 1.75, 1.9, 0.8, "positive", fill="#FBE3D6", edge=ORANGE, size=12)
    _box(ax, 7.9, 0.45, 1.9, 0.8, "<extra_id_0>\nloved", fill="#D9F0E8", edge=GREEN, size=12)
    for y in (2.15, 0.85):
        _arrow(ax, (4.6, y), (5.48, y))
        _arrow(ax, (7.0, y), (7.88, y))
    ax.text(0.2, 2.68, "a task named by its prompt", fontsize=12, color=GREY)
    ax.text(0.2, 0.12, "a gap to fill: a task of pre-training", fontsize=12, color=GREY)
    return fig


def padding() -> Figure:
    """Twelve reviews in three batches of four under the three strategies; padding in orange."""
    lengths = np.array([5, 14, 8, 3, 9, 4, 18, 6, 12, 7, 3, 10])
    limit, rows = 20, 4
    fig, ax = _canvas(10, 4.3)
    ordered = np.sort(lengths)[::-1]
    strategies = (
        ("pad to the limit", lengths, True),
        ("pad to longest", lengths, False),
        ("group by length", ordered, False),
    )
    unit, height = 2.8 / limit, 0.22
    for column, (title, order, to_limit) in enumerate(strategies):
        left, top, total = 0.3 + column * 3.25, 3.6, 0
        for batch in np.split(order, len(order) // rows):
            width = limit if to_limit else batch.max()
            for length in batch:
                ax.add_patch(_bar(left, top - height, width * unit, ORANGE))
                ax.add_patch(_bar(left, top - height, length * unit, BLUE))
                top -= height + 0.02
                total += width
            top -= 0.12
        ax.text(left, 3.95, title, fontsize=13, weight="bold", color=INK)
        ax.text(left, 3.7, f"{1 - lengths.sum() / total:.0%} padding", fontsize=12, color=GREY)
    ax.add_patch(_bar(0.3, 0.1, 0.3, BLUE))
    ax.text(0.68, 0.12, "tokens", fontsize=12, color=INK)
    ax.add_patch(_bar(1.8, 0.1, 0.3, ORANGE))
    ax.text(2.18, 0.12, "padding", fontsize=12, color=INK)
    return fig


def optimizer_memory() -> Figure:
    """Bytes per parameter of a training with Adam, in fp32 and in bf16 with fp32 master weights; a square is a byte."""
    fig, ax = _canvas(10, 3.3)
    rows = (
        (
            "fp32",
            (("parameters", 4, BLUE), ("gradients", 4, ORANGE), ("1st moment", 4, GREEN), ("2nd moment", 4, GREEN)),
        ),
        (
            "bf16 with\nfp32 master",
            (
                ("param.", 2, BLUE),
                ("grad.", 2, ORANGE),
                ("master copy", 4, PURPLE),
                ("1st moment", 4, GREEN),
                ("2nd moment", 4, GREEN),
            ),
        ),
    )
    unit = 0.49
    for (name, parts), top in zip(rows, (2.75, 1.2), strict=True):
        left = 1.6
        ax.text(0.15, top - unit / 2, name, fontsize=13, weight="bold", color=INK, va="center")
        for words, size, colour in parts:
            for byte in range(size):
                ax.add_patch(_bar(left + byte * unit, top - unit, unit, colour, unit))
            ax.text(left + size * unit / 2, top - unit - 0.22, words, ha="center", fontsize=12, color=INK)
            left += size * unit
        total = sum(size for _, size, _ in parts)
        ax.text(left - total * unit, top + 0.12, f"{total} bytes per parameter", fontsize=12, color=GREY)
    ax.text(1.6, 0.1, "one square is one byte; activations come on top", fontsize=12, color=GREY)
    return fig


def zero_stages() -> Figure:
    """What each of four ranks holds in ZeRO stages 0 to 3, in bf16 with Adam.

    Filled is held, pale lies on another rank.
    """
    fig, ax = _canvas(10, 5.6)
    ranks, unit = 4, 0.25
    parts = (
        ("parameters", 2, BLUE, 3),
        ("gradients", 2, ORANGE, 2),
        ("master copy", 4, PURPLE, 1),
        ("moments", 8, GREEN, 1),
    )
    for stage in range(4):
        left, top = 0.3 + stage % 2 * 5.0, 4.9 - stage // 2 * 2.3
        held = sum(size / ranks if stage >= first else size for _, size, _, first in parts)
        ax.text(left, top, f"stage {stage}", fontsize=14, weight="bold", color=INK)
        ax.text(left + 1.0, top, f"{held:g} bytes per parameter and rank", fontsize=12, color=GREY)
        for rank in range(ranks):
            x, y = left, top - 0.4 - rank * 0.4
            for _, size, colour, first in parts:
                width = size * unit
                ax.add_patch(_bar(x, y, width, PALE, 0.28, edge="#B0B0B0"))
                share = width / ranks if stage >= first else width
                ax.add_patch(_bar(x + (rank * share if stage >= first else 0), y, share, colour, 0.28))
                x += width
            ax.text(x + 0.08, y + 0.06, f"rank {rank}", fontsize=10.5, color=GREY)
    lefts = (0.3, 1.9, 3.4, 5.2)
    legend = [(name, left, colour) for (name, _, colour, _), left in zip(parts, lefts, strict=True)]
    for name, left, colour in (*legend, ("on another rank", 6.8, PALE)):
        ax.add_patch(_bar(left, 0.25, 0.3, colour, edge="#B0B0B0" if colour == PALE else PAPER))
        ax.text(left + 0.38, 0.27, name, fontsize=12, color=INK)
    ax.text(0.3, 5.25, "bf16 with Adam, four ranks", fontsize=12, color=GREY)
    return fig


def mixed_precision() -> Figure:
    """Autocast beside DeepSpeed's bf16: what is kept of each parameter, and why a step needs fp32 to arrive."""
    fig, ax = _canvas(10, 5.5)
    pale = {BLUE: "#DDEBF5", ORANGE: "#FBE3D6", GREEN: "#D9F0E8", PURPLE: "#F5E4EE"}
    panels = (
        ("autocast: the Trainer alone", "16 bytes per parameter, and 2 for the copies", "rounded for the arithmetic",
         "weights in fp32: 4 bytes", "a copy in bf16: 2 bytes", "gradients in fp32: 4 bytes",
         (("moments in fp32: 8 bytes", GREEN, 4.0),), "step"),
        ("DeepSpeed's bf16", "16 bytes per parameter, 12 of them to shard in stage 1", "",
         "weights in bf16: 2 bytes", "", "gradients in bf16: 2 bytes",
         (("master, fp32: 4", PURPLE, 1.9), ("moments, fp32: 8", GREEN, 2.0)), "step, rounded"),
    )  # fmt: skip
    for left, panel in zip((0.2, 5.3), panels, strict=True):
        title, total, rounding, weights, copy, gradients, optimizer, step = panel
        ax.text(left, 5.15, title, fontsize=14, weight="bold", color=INK)
        ax.text(left, 4.87, total, fontsize=12, color=GREY)
        _box(ax, left, 4.2, 4.0, 0.5, weights, fill=pale[BLUE], edge=BLUE, size=12)
        if copy:
            _box(ax, left + 0.9, 3.35, 2.2, 0.45, copy, fill=pale[BLUE], edge=BLUE, size=12)
            _arrow(ax, (left + 2.0, 4.2), (left + 2.0, 3.82))
            ax.text(left + 2.1, 3.95, rounding, fontsize=11, color=GREY)
        _arrow(ax, (left + 2.0, 3.35 if copy else 4.2), (left + 2.0, 2.62))
        ax.text(left + 2.15, 2.95, "forward and\nbackward in bf16", fontsize=11, color=GREY, va="center")
        _box(ax, left, 2.1, 4.0, 0.5, gradients, fill=pale[ORANGE], edge=ORANGE, size=12)
        _arrow(ax, (left + 2.0, 2.1), (left + 2.0, 1.77))
        at = left
        for words, colour, width in optimizer:
            _box(ax, at, 1.25, width, 0.5, words, fill=pale[colour], edge=colour, size=12)
            at += width + 0.1
        ax.plot([left + 4.0, left + 4.35, left + 4.35], [1.5, 1.5, 4.45], color=INK, linewidth=2)
        _arrow(ax, (left + 4.35, 4.45), (left + 4.02, 4.45))
        ax.text(left + 4.45, 3.0, step, fontsize=11, color=GREY, rotation=90, va="center")
    eps, scale = 2**-7, 2.6  # from one bf16 number to the next, just above 1, and inches for it
    ax.plot([3.4, 3.4 + 2.3 * scale], [0.5, 0.5], color=GREY, linewidth=1.5)
    for i in range(3):
        ax.plot([3.4 + i * scale] * 2, [0.38, 0.62], color=BLUE, linewidth=3)
        ax.text(3.4 + i * scale, 0.12, ("1", "1.0078", "1.0156")[i], fontsize=11, ha="center", color=INK)
    _arrow(ax, (3.4, 0.5), (3.4 + scale * 0.002 / eps, 0.5), ORANGE)
    ax.text(3.5, 0.68, "+ 0.002", fontsize=11, color=ORANGE)
    ax.text(0.2, 0.55, "why fp32 must be there: bf16 above 1", fontsize=11.5, color=INK)
    ax.text(0.2, 0.28, "has these numbers; a step of 0.002\nrounds back to 1", fontsize=11.5, color=INK, va="center")
    return fig


def low_rank() -> Figure:
    """A frozen matrix, and the detour through two thin ones whose result is added; areas are numbers of parameters."""
    fig, ax = _canvas(10, 4.2)
    side, thin = 2.0, 0.25
    _box(ax, 0.2, 1.55, 1.3, 0.8, "input")
    ax.add_patch(_bar(3.0, 1.9, side, GREY, side))
    ax.text(4.0, 2.9, "W\nfrozen", ha="center", va="center", fontsize=15, color="white", weight="bold")
    ax.add_patch(_bar(3.0, 0.9, side, ORANGE, thin))
    ax.text(4.0, 0.55, "A: rank x inputs", ha="center", fontsize=12, color=INK)
    ax.add_patch(_bar(6.2, 0.3, thin, ORANGE, side - 0.3))
    ax.text(6.6, 0.4, "B: outputs x rank\nzero at the start", fontsize=12, color=INK)
    _box(ax, 7.5, 1.7, 0.5, 0.5, "+", size=16, weight="bold")
    _box(ax, 8.5, 1.55, 1.3, 0.8, "output")
    ways = ((1.5, 2.05, 2.98, 2.8), (1.5, 1.85, 2.98, 1.03), (5.0, 2.8, 7.48, 2.05), (5.0, 1.03, 6.18, 1.03))
    for x, y, to_x, to_y in (*ways, (6.45, 1.5, 7.48, 1.85), (8.0, 1.95, 8.48, 1.95)):
        _arrow(ax, (x, y), (to_x, to_y))
    ax.text(3.0, 3.98, "not changed, no gradient, no moments", fontsize=12, color=GREY)
    ax.text(0.2, 0.1, "orange is trained", fontsize=12, color=ORANGE)
    return fig


def _bar(x: float, y: float, width: float, colour: str, height: float = 0.2, edge: str = PAPER) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, linewidth=0.5)


def draw(folder: str | Path) -> list[Path]:
    """Write every figure as SVG to ``folder``; returns the paths."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[], Figure]] = {f"roadmap_{name[:2]}": partial(roadmap, name) for name in LESSONS}
    figures |= {"two_paths": two_paths, "text_to_text": text_to_text, "padding": padding}
    figures |= {"optimizer_memory": optimizer_memory, "zero_stages": zero_stages, "mixed_precision": mixed_precision}
    figures["low_rank"] = low_rank
    paths = []
    for name, make in figures.items():
        fig = make()
        paths.append(folder / f"{name}.svg")
        fig.savefig(paths[-1], metadata={"Date": None}, facecolor=PAPER)
        plt.close(fig)
    return paths


def main(arguments: list[str]) -> None:
    """Draw the figures into the folder that is named (else ``img/``)."""
    for path in draw(arguments[0] if arguments else home() / "img"):
        print(path.name)
