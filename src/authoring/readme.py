"""Fill ``README.md`` from the last runs: ``make readme`` (``python -m authoring readme``).

Every number in it comes from here: the results table and the picture of memory per rank from ``results.json``, times
from the executed lessons, addresses from ``pyproject.toml``.
"""

import re
from pathlib import Path

from authoring.blocks import fill_block
from authoring.first_cell import put_first_cells, repository
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.plots import plot_rank_memory, plot_results
from finetuning.profiles import PROFILES, Profile, describe
from finetuning.results import (
    ResultRow,
    Results,
    caption,
    duration,
    gain_sentences,
    markdown_table,
    results_table,
    rows_by_stage,
)
from finetuning.workspace import LESSONS, executed_copy, execution_mark, home, read_results, run_folder

COMMAND = "make readme"
RUN = "pocket"
# What the lessons measure, in their order; the README has a line for each.
METHODS = (
    "majority",
    "tfidf",
    "as_shipped",
    "trainer",
    "from_scratch",
    "trainer_short",
    *(f"deepspeed_zero{stage}" for stage in range(4)),
    "deepspeed_zero2_offload",
    "lora",
    "lora_zero3",
)
RESULT_COLUMNS = (
    "lesson",
    "method",
    "accuracy",
    "95 % interval",
    "F1",
    "training",
    "predicts per second",
    "parameters",
)
LESSON_COLUMNS = ("lesson", "the question it answers", "reading and exercises", "its cells run in")
PROFILE_COLUMNS = ("profile", "model", "reviews", "wants", "whole course", "memory at the peak")
PICTURES = ("results.svg", "zero_memory.svg")  # in img/, of the run that fills the README
MISSING = "not measured here"
# torch 2.13.0 for Linux on x86-64 with the libraries that its wheel asks for, as the indices have them; .venv by du.
NEEDS = (
    "It wants Linux or macOS, Python 3.11 to 3.14, `make`, the network and free disk. On Linux the ordinary "
    "torch brings CUDA's libraries: 2.5 GiB to download, and `.venv` takes 6 GiB. Without an NVIDIA GPU the small "
    "torch does as well, with 0.2 GiB to download and a `.venv` of 2.2 GiB: put "
    "`PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu` before the command. On macOS it is always small."
)
ELSEWHERE = (
    "Without installing: [Codespaces](https://codespaces.new/{place}), or a lesson on Colab, {lessons}. On Colab the "
    "first cell of a lesson installs the course, then asks you to restart the kernel. Each notebook has a machine of "
    "its own there: run `!cd course && python -m finetuning run` first, and a lesson finds what it needs."
)


def block_contents(results: Results) -> dict[str, str]:
    """The contents of the README's marked blocks by name, in Markdown.

    ``results``: of the run with the default profile.
    """
    return {
        "start": _start(),
        "results": _results(results),
        "memory": _memory(results),
        "lessons": markdown_table(LESSON_COLUMNS, [*map(_lesson, LESSONS), _all_lessons()]),
        "profiles": markdown_table(PROFILE_COLUMNS, [_profile(profile) for profile in PROFILES.values()]),
    }


def draw_pictures(results: Results, folder: Path) -> None:
    """Draw the accuracies of a run, and the bytes that a rank holds in each ZeRO stage where lesson 04 counted them.

    As SVG into ``folder``, the same files from the same numbers.
    """
    import matplotlib

    matplotlib.use("agg")

    figures = [plot_results(results.rows)]
    if rows := rows_by_stage(results):
        title = (
            f"What each of {rows[0].world_size} ranks holds: {results.run['model']}, {rows[0].parameters:,} parameters"
        )
        held = {str(row.stage): row.bytes_per_rank or {} for row in rows}
        figures.append(plot_rank_memory({_precision(rows): held}, title))
    matplotlib.rcParams["svg.hashsalt"] = "finetuning"
    for name, fig in zip(PICTURES, figures, strict=False):
        fig.savefig(folder / name, format="svg", metadata={"Date": None})


def _start() -> str:
    """The three commands with their minutes, what they need, and how to get the course where it has an address."""
    reading, running = sum(_announced(lesson)[2] for lesson in LESSONS), _duration(course_seconds(RUN))
    address = repository()
    lines = [
        "```sh",
        *([f"git clone {address} course && cd course"] if address else []),
        f"make lab    # the lessons in JupyterLab: {reading} minutes of reading and exercises, the cells run {running}",
        f"make run    # all lessons at once, headless, up to the table below: {running}",
        f"make test   # proves that your copy works, by all that CI runs: {_help('test')}",
        "```",
        "",
        f"The first of them sets up `.venv` ({_help('setup').partition(';')[0]}). {NEEDS}",
    ]
    if not address:
        return "\n".join(["In a clone of this repository:", "", *lines])
    place = address.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{place}/blob/main/notebooks"
    opened = ELSEWHERE.format(
        place=place, lessons=" ".join(f"[{lesson[:2]}]({colab}/{lesson}.ipynb)" for lesson in LESSONS)
    )
    badge = f"[![ci]({address}/actions/workflows/ci.yml/badge.svg)]({address}/actions/workflows/ci.yml)"
    return "\n".join([*lines, "", f"{badge} {opened}"])


def _help(target: str) -> str:
    """What ``make help`` says in brackets of how long a command takes."""
    makefile = (home() / "Makefile").read_text(encoding="utf-8")
    return re.findall(rf"^{target}:.*## .*\((.*)\)$", makefile, re.MULTILINE)[0]


def _results(results: Results) -> str:
    run = results.run
    measured = {row["method"]: row for row in results_table(results).to_dict("records")}
    rows = []
    for method in METHODS:
        row = measured.get(method) or dict.fromkeys(RESULT_COLUMNS, "-") | {"method": method, "accuracy": MISSING}
        rows.append([row[column].replace("_", r"\_") for column in RESULT_COLUMNS])
    tests, gains = ", ".join(sorted({f"{row.n_test:,}" for row in results.rows})), " ".join(gain_sentences(results))
    return "\n".join(
        [
            *([gains, ""] if gains else []),
            f"![Accuracy of each method with its interval: the numbers of the table below.](img/{PICTURES[0]})",
            "",
            markdown_table(RESULT_COLUMNS, rows),
            "",
            f"{caption(results)}; {run['started'][:10]}, torch {run['versions']['torch']}, transformers "
            f"{run['versions']['transformers']}, deepspeed {run['versions']['deepspeed']}. "
            f"Accuracy and F1 on {tests} test reviews, with Wilson's intervals. "
            f"The whole course, run headless: {_duration(course_seconds(RUN))}.",
        ]
    )


def _memory(results: Results) -> str:
    rows = rows_by_stage(results)
    if not rows:
        return f"Memory per rank: {MISSING}."
    held = {row.stage: sum((row.bytes_per_rank or {}).values()) / 2**20 for row in rows}
    sizes = ", ".join(f"stage {stage} {size:.1f} MiB" for stage, size in held.items())
    alternative = f"Stacked bars of the bytes each rank holds in {_precision(rows)}, by ZeRO stage: {sizes}."
    return (
        f"![{alternative}](img/{PICTURES[1]})\n\n"
        f"{results.run['model']}, {_precision(rows)}, {rows[0].world_size} ranks, counted between two "
        f"micro-batches: {sizes}."
    )


def _precision(rows: list[ResultRow]) -> str:
    held, parameters = rows[0].bytes_per_rank, rows[0].parameters
    assert held and parameters  # rows_by_stage gives no other rows
    return "bf16" if held["parameters"] < 3 * parameters else "fp32"


def _lesson(lesson: str) -> tuple[str, ...]:
    name, question, minutes = _announced(lesson)
    return (
        f"[{lesson[:2]} {name}](notebooks/{lesson}.ipynb)",
        question,
        f"{minutes} minutes" if minutes else MISSING,
        _duration(lesson_seconds(RUN, lesson)),
    )


def _all_lessons() -> tuple[str, ...]:
    minutes = [_announced(lesson)[2] for lesson in LESSONS]
    return "all", "", f"{sum(minutes)} minutes" if all(minutes) else MISSING, _duration(course_seconds(RUN))


def _announced(lesson: str) -> tuple[str, str, int]:
    """A lesson's name, its question and the minutes that reading it takes (0: it does not say), from its first cell."""
    import nbformat

    title = nbformat.read(home() / "notebooks" / f"{lesson}.ipynb", as_version=4).cells[0].source
    name, _, rest = title.splitlines()[0].strip("# ").partition(": ")
    question = re.search(r"^\*\*(.+\?)\*\*$", title, re.MULTILINE)
    reading = re.search(r"Reading time (\d+) minutes", title)
    return name, question[1] if question else rest.capitalize(), int(reading[1]) if reading else 0


def lesson_seconds(run: str, lesson: str) -> float | None:
    """How long a run took to execute a lesson; None where it did not, or not to the end."""
    return execution_mark(executed_copy(run, lesson)).get("seconds")


def course_seconds(run: str) -> float | None:
    """How long a run took to execute all lessons; None where it did not."""
    seconds = [taken for lesson in LESSONS if (taken := lesson_seconds(run, lesson)) is not None]
    return sum(seconds) if len(seconds) == len(LESSONS) else None


def _profile(profile: Profile) -> tuple[str, ...]:
    results, seconds = read_results(profile.name), course_seconds(profile.name)
    whole, peak = MISSING, MISSING
    if results is not None and seconds is not None and not results.run["limit"]:
        whole = f"{_duration(seconds)} ({caption(results).split(', ')[-1]})"
        peak = _peak(results.rows)
    gpu = f"{profile.device_memory} GiB of GPU memory; the network once"
    return (
        f"`{profile.name}`",
        describe(profile.model),
        describe(profile.reviews),
        gpu if profile.device_memory else "no GPU, no network",
        whole,
        peak,
    )


def _peak(rows: list[ResultRow]) -> str:
    for key, where in (("peak_device_bytes", "on the GPU"), ("peak_rss_bytes", "per process")):
        if peaks := [peak for row in rows if (peak := getattr(row, key))]:
            return f"{max(peaks) / 2**30:.1f} GiB {where}"
    return MISSING


def _duration(seconds: float | None) -> str:
    return duration(seconds) or MISSING


def main(arguments: list[str]) -> None:
    """Fill the README and draw its pictures from ``runs/pocket``, and put the set-up cell into the lessons."""
    path = home() / "README.md"
    results = read_results(RUN)
    if results is None:
        raise CourseError(
            f"There is no {run_folder(RUN) / 'results.json'} to fill the README from; run make run first."
        )
    text = path.read_text(encoding="utf-8")
    for name, content in block_contents(results).items():
        text = fill_block(text, name, content, COMMAND)
    draw_pictures(results, home() / "img")
    put_first_cells()
    write_atomically(path, text)
    print(f"{path.name} filled from {run_folder(RUN)}")
