"""Seconds of imports, of a kernel's start and of the lessons of a finished run."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from finetuning.workspace import LESSONS, executed_copy, execution_mark


def seconds_of(code: str) -> float:
    """Seconds that a fresh Python takes for a program."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def kernel_start_seconds() -> float:
    """Seconds until a fresh notebook kernel answers."""
    from jupyter_client.manager import start_new_kernel

    began = time.perf_counter()
    manager, client = start_new_kernel()
    taken = time.perf_counter() - began
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return taken


KINDS = (  # what a cell is about, by what stands in it; the first that fits counts
    ("training", r"\.train\(|launch\.run|short_training|\.step\(\)|take_turns"),
    ("plots", r"plots\.plot"),
    ("imports", r"^(from|import) "),
    ("data", r"load_reviews|load_from_disk|\.map\(|data\.|find_duplicates"),
    ("evaluation", r"score_labels|measure\(|verdict|predict|generate"),
)


def seconds_by_kind(run: str) -> dict[str, dict[str, float]]:
    """Seconds of each lesson of a finished run by kind of cell.

    A dict of lesson -> kind -> seconds ({} without such a run).
    """
    measured: dict[str, dict[str, float]] = {}
    for lesson in LESSONS:
        executed = executed_copy(run, lesson)
        if not execution_mark(executed):
            return {}
        kinds = dict.fromkeys([*(kind for kind, _ in KINDS), "the rest"], 0.0)
        for cell in executed["cells"]:
            source = "".join(cell["source"])
            kind = next((kind for kind, pattern in KINDS if re.search(pattern, source, re.MULTILINE)), "the rest")
            kinds[kind] += (cell["metadata"].get("papermill") or {}).get("duration") or 0.0
        whole = executed["metadata"]["papermill"]["duration"]
        kinds["kernel start and saving"] = max(0.0, whole - sum(kinds.values()))
        measured[lesson] = kinds
    return measured
