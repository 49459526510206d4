"""What this machine has and what it is fast at, and what a process has used of it."""

import os
import platform
import re
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np


@cache
def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices faster than fp32 ones; fp16 is no option, T5 overflows in it.

    Measured once in a process: a processor may list instructions for bfloat16 and still multiply it at half the speed
    of fp32. By one thread's own time, in turn, so that other programs on the machine do not change the answer.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    kinds, threads = (torch.float32, torch.bfloat16), torch.get_num_threads()
    pairs = [(torch.ones(256, 512, dtype=kind), torch.ones(512, 512, dtype=kind)) for kind in kinds]
    torch.set_num_threads(1)
    rounds = []
    for _ in range(10):
        marks = [time.thread_time()]
        for a, b in pairs:
            a @ b
            marks.append(time.thread_time())
        rounds.append(np.diff(marks))
    torch.set_num_threads(threads)
    fp32, bf16 = np.min(rounds, axis=0)
    return bool(bf16 < 0.8 * fp32)


def this_machine() -> dict:
    """What the machine has: processor, cores, memory (bytes), number of GPUs, the first and its memory, system.

    Used in lesson 00 and in the head of ``results.json``. ``gpu`` and ``gpu_memory_bytes``: None without one.
    """
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_bytes": _memory(),
        "gpu": gpu.name if gpu else None,
        "gpus": torch.cuda.device_count(),
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process: ``peak_rss_bytes``, and ``peak_device_bytes`` on the GPU (None without one)."""
    import resource

    import torch

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_rss_bytes": kib * (1 if platform.system() == "Darwin" else 1024),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries the course is built on."""
    names = (
        "torch", "transformers", "datasets", "accelerate", "peft", "deepspeed", "evaluate", "scikit-learn", "papermill",
    )  # fmt: skip
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def _memory() -> int:
    """Memory in bytes, the control group's limit where one is set."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def synchronize() -> None:
    """Wait until the GPU, where there is one, has done what it was asked: before a clock is read."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
