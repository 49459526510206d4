"""Lesson 04: what a rank measures of its own training while it runs, and tells the reader."""

import os
import signal
import time
from typing import Any

import numpy as np
import psutil
from transformers import TrainerCallback, TrainerState, TrainingArguments

from finetuning.distributed.jobs import TrainingJob
from finetuning.distributed.memory import held_bytes, own_step_counters

stream = 1  # where a rank tells the reader: the launcher's pipe, once ``train`` has sent standard output to the log
COUNT_AT = 2  # optimizer steps before bytes and seconds are taken: the first ones also allocate


def show(line: str) -> None:
    """Print a line for the reader; the libraries' own output goes to the rank's log."""
    os.write(stream, f"| {line}\n".encode())


class StepMeter(TrainerCallback):
    """A Trainer callback: seconds per step, bytes held between micro-batches, bytes sent; rank 0 prints progress."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.printed = job, 0.0
        self.trainer: Any = None  # given once it exists
        self.seconds: list[float] = []
        self.bytes: dict[str, int] | None = None
        self.sent: dict = {}

    def measured(self) -> dict:
        """Seconds of each step from COUNT_AT on, their median, bytes per component, bytes that each rank sends a step.

        None where it was not measured.
        """
        used = self.seconds[COUNT_AT:] or self.seconds
        steps = sorted(self.sent)
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        sent = None
        if len(steps) > 1 and None not in self.sent.values() and ranks > 1:
            sent = (self.sent[steps[-1]] - self.sent[steps[0]]) / (steps[-1] - steps[0]) / ranks
        return {
            "step_seconds": used,
            "seconds_per_step": float(np.median(used)),
            "bytes_per_rank": self.bytes,
            "bytes_sent_per_step": sent,
        }

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        own_step_counters(self.trainer.optimizer)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()
        if state.global_step >= COUNT_AT:
            self.sent[state.global_step] = loopback_bytes()
        if self.job.die_at == state.global_step:  # the lesson's power cut
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == min(COUNT_AT, state.max_steps - 1) and self.bytes is None:
            self.bytes = held_bytes(self.trainer.model_wrapped, self.trainer.optimizer)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        done = state.global_step == state.max_steps
        if args.process_index == 0 and "loss" in logs and (done or time.monotonic() - self.printed > 3):
            self.printed = time.monotonic()
            show(f"{self.job.name:16} step {state.global_step:3}/{state.max_steps}  loss {logs['loss']:.4f}")


def loopback_bytes() -> int | None:
    """Bytes that this machine has sent to itself so far (Linux, else None), as ranks on one machine do on a CPU."""
    loopback = psutil.net_io_counters(pernic=True).get("lo")
    return loopback.bytes_sent if loopback else None
