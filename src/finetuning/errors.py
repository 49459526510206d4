"""What the reader can put right, in one sentence each with the way out."""

import re
import tomllib
from pathlib import Path
from typing import Literal

SYMPTOMS = tomllib.loads((Path(__file__).parent / "assets" / "errors.toml").read_text(encoding="utf-8"))["symptom"]


class CourseError(Exception):
    """Something the reader can put right. The message is one sentence that says how; Jupyter shows it alone."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def first_line(error: BaseException) -> str:
    """What a library's error says first, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def way_out(text: str, where: Literal["training", "lesson", "hub"]) -> str | None:
    """The way out for the first of assets/errors.toml's symptoms that the text shows; None where it shows none."""
    known = (symptom for symptom in SYMPTOMS if where in symptom)
    return next((one[where] for one in known if re.search(one["pattern"], text, re.IGNORECASE | re.MULTILINE)), None)


def hub_error(what: str, place: str, error: BaseException, *, instead: str) -> CourseError:
    """A CourseError that says why ``what`` ("model" or "data set") ``place`` could not be had, and what to do.

    ``instead``: the setting that takes a local folder (BASE_MODEL or REVIEWS). Reads the whole chain of causes, because
    the libraries wrap what the network said.
    """
    from httpx import HTTPStatusError
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is not None and cause not in chain:
            chain.append(cause)
            waiting += [cause.__cause__, cause.__context__]
    statuses = (cause.response.status_code for cause in chain if isinstance(cause, (HfHubHTTPError, HTTPStatusError)))
    status = next(statuses, None)
    signs = [f"HTTP status {status}", *["HF_HUB_OFFLINE"] * HF_HUB_OFFLINE]
    signs += [f"{type(cause).__name__}: {cause}" for cause in chain]
    why = way_out("\n".join(signs), "hub") or (
        f"the Hub could not be reached or the download broke off ({type(error).__name__}): check the network and "
        "try again, files that came whole are kept; or set HF_HUB_OFFLINE=1 when it is cached"
    )
    return CourseError(
        f"The {what} {place} could not be loaded from the Hub: {why.format(status=status)}. "
        f"Or give a local folder as {instead}=..., or run PROFILE=pocket, which needs no network."
    )
