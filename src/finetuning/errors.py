"""What the reader can put right, in one sentence each with the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


class CourseError(Exception):
    """Something the reader can put right. The message is one sentence that says how; Jupyter shows it alone."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Symptom:
    """What a library or the system says when something is wrong (a pattern, upper or lower case), and the way out.

    ``training``: for a rank of a training of its own; ``lesson``: for a cell of a lesson. "": it is no symptom there.
    """

    pattern: str
    training: str
    lesson: str = ""


SYMPTOMS = (
    Symptom(
        r"EADDRINUSE|address already in use",
        training="another run uses this port; give another one (port=...) or wait for it to end",
    ),
    Symptom(
        r"out of memory|OutOfMemoryError|can't allocate memory|MemoryError|bad_alloc|signal 9|SIGKILL"
        r"|Cannot allocate memory",
        training="it ran out of memory or was killed; take a smaller micro_batch with more accumulation, a "
        "higher ZeRO stage, offload, or limit=",
        lesson="the memory is full; set LIMIT= or choose a smaller profile, or a smaller batch_size in profiles.py",
    ),
    Symptom(
        r"Extra inputs are not permitted|extra_forbidden",
        training="the DeepSpeed configuration has a key that DeepSpeed does not know; the lines above name it",
    ),
    Symptom(
        r"DP world size of",
        training="the checkpoint is of another number of ranks; make a universal one of it "
        "(launch.universal_checkpoint)",
    ),
    Symptom(
        r"mpi4py",
        training="the process was not started by a launcher; start it through launch.run or torch.distributed.run",
    ),
    Symptom(
        r"CUDA_HOME|ninja is required|Error building extension",
        training="an operator could not be compiled; use the torch optimizer (zero_force_ds_cpu_optimizer: false) "
        "or install a compiler",
    ),
    Symptom(r"No module named '?deepspeed", training="DeepSpeed is not installed here; run make setup"),
    Symptom(
        r"No space left on device|unexpected pos|Disk quota exceeded|file write failed",
        training="the disk is full; free some space and run again",
        lesson="the disk is full; free some space",
    ),
)


def way_out(text: str, where: Literal["training", "lesson"]) -> str | None:
    """The way out for the first symptom that the text shows; None where it shows none that is known there."""
    shown = (s for s in SYMPTOMS if getattr(s, where) and re.search(s.pattern, text, re.IGNORECASE))
    return next((getattr(symptom, where) for symptom in shown), None)


# Status of the Hub's answer -> what it means and what to do.
ANSWERS = {
    401: "it is not there, or not open to you (401): check the name; the course needs no login, so unset an "
    "expired HF_TOKEN",
    403: "access to it is refused (403): accept its terms on its page, or take another",
    404: "there is nothing of this name and revision, or a file of it is missing (404): check the name",
    429: "the Hub has had too many requests from here (429): wait a few minutes and try again",
}


def hub_error(what: str, place: str, error: BaseException, *, instead: str) -> CourseError:
    """A CourseError that says why ``what`` ("model" or "data set") ``place`` could not be had, and what to do.

    ``instead``: the setting that takes a local folder (BASE_MODEL or REVIEWS). Reads the whole chain of causes, because
    the libraries wrap what the network said.
    """
    from httpx import HTTPStatusError
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is not None and cause not in chain:
            chain.append(cause)
            waiting += [cause.__cause__, cause.__context__]
    answers = (cause.response.status_code for cause in chain if isinstance(cause, (HfHubHTTPError, HTTPStatusError)))
    status, texts = next(answers, None), "\n".join(map(str, chain))
    if any(isinstance(cause, SafetensorError) for cause in chain):
        why = "its weights are damaged in the cache: unset HF_HUB_OFFLINE and try again, they are downloaded anew"
    elif "named model.safetensors" in texts:
        why = "it has no weights in safetensors, the only format this course reads: take another"
    elif status in ANSWERS:
        why = ANSWERS[status]
    elif status and status >= 500:
        why = f"the Hub has trouble of its own ({status}): try again later; what is downloaded stays"
    elif HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE=1 is set and it is not in the cache: unset it once to download"
    elif "remote code" in texts or "trust_remote_code" in texts:
        why = "it wants to run code of its own, which this course does not do: take another"
    elif "scripts are no longer supported" in texts:
        why = "it is made by a script, which is not run: take one that holds CSV, JSON Lines or Parquet files"
    else:
        why = (
            f"the Hub could not be reached or the download broke off ({type(error).__name__}): check the network and "
            "try again, files that came whole are kept; or set HF_HUB_OFFLINE=1 when it is cached"
        )
    return CourseError(
        f"The {what} {place} could not be loaded from the Hub: {why}. "
        f"Or give a local folder as {instead}=..., or run PROFILE=pocket, which needs no network."
    )
