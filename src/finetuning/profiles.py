"""What to run: a profile names everything that differs between a laptop and a cluster."""

import contextlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from finetuning.errors import CourseError

ASSETS = Path(__file__).parent / "assets"
POCKET_T5 = ASSETS / "pocket_t5"
POCKET_REVIEWS = ASSETS / "pocket_reviews"
RAW_REVIEWS = ASSETS / "raw_reviews"
SMALLEST_LIMIT = 40  # reviews; a tenth of them becomes the validation split
MOST_LABELS = 20


class Columns(NamedTuple):
    """Where texts and labels stand in a file of reviews: the columns' names ("": found by their usual names).

    ``rating`` is two numbers, as "4,7": up to the first a rating is negative, from the second positive. ``labels`` are
    the label words in their order, as "bad,fine,good", or "1=bad,2=fine,3=good" where the data name them otherwise.
    """

    text: str = ""
    label: str = ""
    rating: str = ""
    labels: str = ""

    def words(self) -> dict[str, str]:
        """What ``labels`` names: a dict of label in the data -> label word."""
        pairs = [one.split("=", 1) for one in self.labels.split(",")] if self.labels else []
        return {pair[0].strip(): pair[-1].strip() for pair in pairs}


USUAL_COLUMNS = Columns()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Settings of a run: lengths in tokens, sizes in reviews, ``device_memory`` in GiB per GPU (0: no GPU needed)."""

    name: str
    model: str  # a folder or a Hub id
    model_revision: str | None = None
    reviews: str  # a file, a folder or a Hub id
    reviews_revision: str | None = None
    prompt: str
    max_length: int
    epochs: int
    batch_size: int
    learning_rate: float
    scratch_learning_rate: float
    device_memory: int
    limit: int = 0  # largest number of training reviews, and of test reviews; 0: all
    seed: int = 1
    columns: Columns = USUAL_COLUMNS


def _place(place: str) -> str:
    """A place of assets/profiles.toml: what comes with the course as a path, a Hub id as it is."""
    return str(ASSETS / place) if (ASSETS / place).is_dir() else place


PROFILES = {
    name: Profile(**values | {"name": name, "model": _place(values["model"]), "reviews": _place(values["reviews"])})
    for name, values in tomllib.loads((ASSETS / "profiles.toml").read_text(encoding="utf-8")).items()
}


def choose(
    profile: str = "pocket", *, reviews: str = "", base_model: str = "", limit: int = 0, seed: int = 1,
    columns: Mapping[str, str] | None = None,
) -> Profile:  # fmt: skip
    """The settings of a run: a profile by name, with your own reviews or another model in place of its own.

    Used at the top of every lesson. ``reviews`` is a file (CSV, JSON, Parquet), a folder of them or a Hub id, whose
    ``columns`` are found by their names or given (a dict of ``Columns``); ``base_model`` is a folder or a Hub id,
    ``limit`` the largest number of training and of test reviews (0: all). Raises CourseError for what is none of them.
    """
    if profile not in PROFILES:
        raise CourseError(f"There is no profile {profile!r}; choose one of {', '.join(PROFILES)}.")
    for name, value in (("limit", limit), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise CourseError(f"{name} must be a whole number from 0 up to 4294967295, not {str(value)[:40]!r}.")
    if 0 < limit < SMALLEST_LIMIT:
        raise CourseError(f"limit must be 0 (all reviews) or at least {SMALLEST_LIMIT}; {limit} teach nothing.")
    if unknown := set(columns or {}) - set(Columns._fields):
        raise CourseError(f"columns has no {', '.join(unknown)}; it names {', '.join(Columns._fields)}.")
    given = Columns(**columns or {})
    rating, number = given.rating, r"\s*-?\d+(\.\d+)?\s*"
    if rating and not (re.fullmatch(f"{number},{number}", rating) and float.__lt__(*map(float, rating.split(",")))):
        raise CourseError(f"rating must be two numbers, the lower first, as '4,7', not {rating!r}.")
    words = given.words()
    if given.labels and (rating or "" in {*words, *words.values()} or not 2 <= len({*words.values()}) <= MOST_LABELS):
        form = f"2 to {MOST_LABELS} label words, as 'bad,fine,good', or as '1=bad,2=fine,3=good', and not with rating"
        raise CourseError(f"labels must be {form}; {given.labels[:80]!r} is not.")
    settings = replace(PROFILES[profile], limit=limit, seed=seed, columns=given)
    if reviews:
        settings = replace(settings, reviews=as_place(reviews, "reviews"), reviews_revision=None)
    if base_model:
        settings = replace(settings, model=as_place(base_model, "base_model"), model_revision=None)
    return settings


def as_place(place: str, name: str) -> str:
    """A file or folder as an absolute path (notebooks run in a folder of their own); a Hub id as it is."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a name that no file can have, an unknown ~user
        path = Path(place).expanduser()
        if path.exists():
            return str(path.resolve())
    hub_id = r"[\w-][\w.-]*/[\w.-]+" if name == "reviews" else r"[\w-][\w.-]*(/[\w.-]+)?"
    if not re.fullmatch(hub_id, place) or re.search(r"\.(csv|tsv|txt|jsonl?|parquet|arrow|gz)$", place.lower()):
        missing = f"There is no file or folder {place[:200]!r}, seen from {Path.cwd()}"
        raise CourseError(f"{missing}, and it is no Hub id; check {name}.")
    return place


def describe(place: str) -> str:
    """How results name a model or data set: a shipped one by its title, a path by its last part, a Hub id whole."""
    known = {str(POCKET_T5): "pocket T5", str(POCKET_REVIEWS): "Pocket Reviews"}
    return known.get(place) or (Path(place).name if Path(place).is_absolute() else place)


def fitting_profiles(machine: dict) -> dict[str, tuple[bool, str]]:
    """For each profile, whether the machine can train it: a dict of name -> (fits, reason)."""
    gib = (machine["gpu_memory_bytes"] or 0) / 2**30 * machine["gpus"]
    answers = {}
    for profile in PROFILES.values():
        if not profile.device_memory:
            answers[profile.name] = (True, "needs no GPU and no network")
        elif gib >= profile.device_memory * 0.9:
            answers[profile.name] = (True, f"{gib:.0f} GiB of GPU memory is enough; needs the network once")
        else:
            answers[profile.name] = (False, f"wants {profile.device_memory} GiB of GPU memory, found {gib:.0f} GiB")
    return answers
