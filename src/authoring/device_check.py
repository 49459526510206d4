"""What this machine's GPUs make of the DeepSpeed lessons, in one run of at most eight minutes: ``make device-check``.

With a GPU the table becomes part of the package (``assets/device_check.json``), for readers who have none; without one
the same script runs in small on two processes and leaves it in ``runs/device_check/``.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.cuda import device_count

from finetuning.distributed import launch
from finetuning.distributed.jobs import training_job
from finetuning.distributed.planner import FAMILY, needed_bytes, t5_shape
from finetuning.errors import CourseError, first_line
from finetuning.files import write_atomically
from finetuning.machine import this_machine, versions
from finetuning.profiles import ASSETS, choose, describe
from finetuning.results import markdown_table, name_machine
from finetuning.workspace import Workspace, runs_folder

# Seconds after the start at which a part has to be done, on GPUs, which cost money; without any it may take longer.
ENDS = {"strategies": 200, "bench": 290, "largest": 480}
TINY = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 32128}
MEASURED = ("seconds_per_step", "train_reviews_per_second", "bytes_per_rank", "peak_device_bytes", "peak_rss_bytes")


def strategies(workspace: Workspace, gpus: int, left: Callable[[str], float]) -> dict[str, dict]:
    """Small's shape trained by the plain Trainer and by each stage on all GPUs: what a rank measured, and the losses.

    ``apart`` is the largest difference of the losses from the plain Trainer's, in fp32.
    """
    ranks = gpus or 2
    size = {"shape": "t5-small", "steps": 20, "batch_size": 32 * ranks} if gpus else {"shape": TINY, "steps": 4}
    measured: dict[str, dict] = {}
    for bf16 in (False, True) if gpus else (False,):
        for name in ("plain", "zero0", "zero1", "zero2", "zero3") if gpus else ("plain", "zero2"):
            deepspeed = "" if name == "plain" else name
            training = training_job(workspace, f"{name}{'_bf16' * bf16}", deepspeed=deepspeed, bf16=bf16, **size)
            answer = launch.run(training, ranks=ranks, limit=left("strategies"))[0]
            apart = np.abs(np.subtract(answer["losses"], measured.get("plain", answer)["losses"])).max()
            measured[training.name] = {**{key: answer[key] for key in (*MEASURED, "losses")}, "apart": float(apart)}
    return measured


def bench(settings: Any, left: Callable[[str], float]) -> dict:
    """The quick run of the speed bench: its parts on training and prediction."""
    words = [sys.executable, "-m", "authoring", "bench", "--quick", "--reviews", settings.reviews]
    done = subprocess.run(words, capture_output=True, text=True, timeout=left("bench"))
    if done.returncode:
        raise CourseError(f"the bench failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found = json.loads((runs_folder() / "bench" / "bench.json").read_text())
    return {part: found[part] for part in ("training", "prediction")}


def largest(workspace: Workspace, gpus: int, left: Callable[[str], float]) -> dict[str, dict]:
    """Ever larger T5s on one rank until one does not fit or time is up: bytes at the peak, and as the planner says."""
    measured: dict[str, dict] = {}
    for strategy in ("plain", "zero3_offload"):
        for name in FAMILY if gpus else ["google-t5/t5-small"]:
            training = training_job(
                workspace, f"largest_{strategy}_{Path(name).name}", deepspeed="" if strategy == "plain" else strategy,
                shape=name, bf16=True, steps=3, batch_size=2, micro_batch=1, max_length=0 if gpus else 16,
            )  # fmt: skip
            planned, _ = needed_bytes(t5_shape(name), strategy, 1, 1, tokens=(training.settings.max_length, 2))
            row: dict[str, Any] = {"planned_bytes": sum(planned.values())}
            measured[f"{strategy} {Path(name).name}"] = row
            try:
                answer = launch.run(training, ranks=1, limit=left("largest"))[0]
            except CourseError as error:
                row["failed"] = first_line(error)
                break
            row |= {key: answer[key] for key in ("seconds_per_step", "peak_device_bytes", "peak_rss_bytes")}
    return measured


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown: a line for each training, and for each part that failed its sentence."""
    lines = []
    for part in ("strategies", "largest"):
        for name, row in found[part].items() if "failed" not in found[part] else ():
            if "failed" in row:
                lines.append((name, row["failed"], "", ""))
                continue
            peak = row["peak_device_bytes"] or row["peak_rss_bytes"]
            apart = f"{row['apart']:.1e}" if "apart" in row else ""
            lines.append((name, f"{row['seconds_per_step']:.3f}", f"{peak / 1e9:.2f}", apart))
    failed = [f"{part}: {found[part]['failed']}" for part in ENDS if "failed" in found[part]]
    head = f"{name_machine(found['machine'])}; {', '.join(' '.join(one) for one in found['versions'].items())}"
    columns = ["training", "seconds per step", "GB at its peak", "losses apart"]
    return "\n".join([head, "", markdown_table(columns, lines), *failed])


def main(arguments: list[str]) -> None:
    """Read the command line, run the parts, keep what each measured at once."""
    parser = argparse.ArgumentParser("python -m authoring device-check", description=__doc__)
    parser.add_argument("--reviews", default="", help="other reviews than the shipped ones: a file or a folder")
    began, gpus = time.monotonic(), device_count()
    settings = choose(reviews=parser.parse_args(arguments).reviews, limit=2000)
    workspace = Workspace("device_check", settings)
    place = ASSETS / "device_check.json" if gpus else workspace.path / "device_check.json"
    found: dict[str, Any] = {"machine": this_machine(), "versions": versions(), "reviews": describe(settings.reviews)}

    def left(part: str) -> float:
        return max(1, ENDS[part] * (1 if gpus else 5) + began - time.monotonic())

    parts = {"strategies": partial(strategies, workspace, gpus), "bench": partial(bench, settings)}
    for name, part in (parts | {"largest": partial(largest, workspace, gpus)}).items():
        try:
            found[name] = part(left)
        except (CourseError, subprocess.TimeoutExpired) as error:  # the next part may still go
            found[name] = {"failed": first_line(error)}
        write_atomically(place, json.dumps(found, indent=1) + "\n")
    print(table(found), f"kept in {place}", sep="\n")
