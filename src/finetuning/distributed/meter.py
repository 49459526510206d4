"""Lesson 04: what a rank measures of its own training while it runs, and tells the reader."""

import os
import signal
import time
from typing import Any

import numpy as np
import psutil
import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from finetuning.distributed import process
from finetuning.distributed.jobs import Training
from finetuning.distributed.memory import held_bytes, own_step_counters

COUNT_AT = 2  # optimizer steps before bytes and seconds are taken: the first ones also allocate


class StepMeter(TrainerCallback):
    """A Trainer callback: seconds per step, bytes held between micro-batches, bytes sent; rank 0 prints progress."""

    def __init__(self, training: Training) -> None:
        self.training, self.printed = training, 0.0
        self.trainer: Any = None  # given once it exists
        self.seconds: list[float] = []
        self.bytes: dict[str, int] | None = None
        self.sent: dict = {}

    def measured(self) -> dict:
        """Seconds of each step from COUNT_AT on, their median, bytes per component, bytes that each rank sends a step.

        None where it was not measured.
        """
        used, steps, sent = self.seconds[COUNT_AT:] or self.seconds, sorted(self.sent), None
        if len(steps) > 1 and None not in self.sent.values() and process.RANKS > 1:
            sent = (self.sent[steps[-1]] - self.sent[steps[0]]) / (steps[-1] - steps[0]) / process.RANKS
        return {
            "step_seconds": used,
            "seconds_per_step": float(np.median(used)) if used else None,
            "bytes_per_rank": self.bytes,
            "bytes_sent_per_step": sent,
        }

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        own_step_counters(self.trainer.optimizer)
        self.start = time.perf_counter() - max((entry.get("seconds", 0) for entry in state.log_history), default=0)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()
        if state.global_step >= COUNT_AT:
            self.sent[state.global_step] = loopback_bytes()
        if self.training.die_at and self.training.die_at == state.global_step:  # a power cut, to practise
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == min(COUNT_AT, state.max_steps - 1) and self.bytes is None:
            self.bytes = held_bytes(self.trainer.model_wrapped, self.trainer.optimizer)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        logged = state.log_history[-1]
        logged["seconds"] = time.perf_counter() - self.start  # with those before an interruption
        done = state.global_step == state.max_steps
        if "loss" in logged and (done or time.monotonic() - self.printed > 3):
            self.printed = time.monotonic()
            self._tell(state, f"loss {logged['loss']:.4f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, *_: Any, metrics: dict, **__: Any) -> None:
        best = metrics["eval_accuracy"] > (state.best_metric or 0)
        self._tell(state, f"validation accuracy {metrics['eval_accuracy']:.3f}{', the best so far' * best}")

    def _tell(self, state: TrainerState, what: str) -> None:
        process.show(f"{self.training.name:16} step {state.global_step:3}/{state.max_steps}  {what}")


def loopback_bytes() -> int | None:
    """Bytes that this machine has sent to itself so far, as ranks on CPUs do; None on GPUs and off Linux."""
    loopback = None if torch.cuda.is_available() else psutil.net_io_counters(pernic=True).get("lo")
    return loopback.bytes_sent if loopback else None
