"""The course as one static site: ``make site`` (``python -m authoring site [run]``).

``build/site/`` holds the report of a run, its lessons with their outputs, the glossary, the slides and the learners'
zip, with a front page that says of which commit and machine they are. The pages link one another and nothing else.
"""

import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

from authoring.classroom import make_copies
from authoring.slides import front_page, make_slides
from finetuning.course.report import title_of, write_report
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.profiles import choose
from finetuning.results import caption
from finetuning.workspace import LESSONS, Workspace, home, read_results


def make_site(folder: Path, run: str) -> Path:
    """Write the site of a run into ``folder``, anew; returns its front page.

    Raises CourseError where there is no such run.
    """
    import nbformat

    results = read_results(run)
    if results is None:
        raise CourseError(f"There is no run {run!r} to make a site of; run make run first.")
    shutil.rmtree(folder, ignore_errors=True)
    settings = choose(results.run["profile"], limit=results.run["limit"], seed=results.run["seed"])
    workspace = Workspace(run, settings)
    write_report(workspace, folder)
    make_slides(folder / "slides", run)
    with tempfile.TemporaryDirectory() as place:
        learners, _ = make_copies(Path(place), run)
        shutil.copy(learners, folder)
    copies = [workspace.notebooks / f"{lesson}.ipynb" for lesson in LESSONS]
    titles = {copy.stem: title_of(copy.stem, nbformat.read(copy, as_version=4)) for copy in copies if copy.exists()}
    project = tomllib.loads((home() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = front_page(
        "site.html.j2", name="Fine-tuning language models, hands on", what=f"{project['description']}.",
        lessons=titles.items(), commit=commit(), started=results.run["started"][:10], caption=caption(results),
    )  # fmt: skip
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def commit() -> str:
    """The commit that the course stands at, in short, and whether files have changed since."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty= with changes"]
    try:
        return subprocess.run(command, cwd=home(), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(arguments: list[str]) -> None:
    """Make the site in ``build/site/`` from the run that is named (else ``pocket``)."""
    print(make_site(home() / "build" / "site", *(arguments or ["pocket"])))
