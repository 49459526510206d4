"""A process of its own for each measurement."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import TYPE_CHECKING, Any

from finetuning.errors import CourseError

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


def in_own_process(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The result of ``work``, done in a process of its own that has the libraries loaded and has computed nothing yet.

    Memory that a process has freed makes its next tensors cheap: of two contenders in one process the second would
    profit from the first. ``work`` and its arguments must be picklable. Raises CourseError if the process dies.
    """
    with ProcessPoolExecutor(1, mp_context=_fresh_processes()) as pool:
        try:
            return pool.submit(work, *args, **named).result()
        except BrokenProcessPool:
            raise CourseError(
                "A measurement's process was killed, most likely for want of memory; close other programs and "
                "start again."
            ) from None


@cache
def _fresh_processes() -> BaseContext:
    """Processes that start as copies of one that has done nothing but import (where the system cannot: as new ones)."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetuning.models", "transformers.models.t5.modeling_t5"])
    return context
