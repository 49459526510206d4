"""The report of a run: ``report.html``, a page per executed lesson, and the glossary."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.files import find_damage, write_atomically
from finetuning.profiles import ASSETS
from finetuning.results import caption, duration, gain_sentences, results_table, rows_by_stage
from finetuning.workspace import LESSONS, Workspace, execution_mark, home

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = ASSETS / "nbconvert"


def link_pages(page: str, names: list[str]) -> str:
    """A notebook's page with links to the pages of ``names`` in place of notebooks; of other links the words stay."""

    def to_page(link: re.Match) -> str:
        return f'<a href="{link[1]}.html{link[2]}">{link[3]}</a>' if link[1] in names else link[3]

    return re.sub(r'<a href="(\w+)\.ipynb(#[^"]*|)">(.*?)</a>', to_page, page)


def title_of(name: str, notebook: "NotebookNode") -> str:
    """A lesson's number and its heading, or the heading alone where the name has no number."""
    return " ".join([*re.findall(r"^\d+", name), notebook.cells[0].source.splitlines()[0].strip("# ")])


def describe_plots(notebook: "NotebookNode") -> None:
    """Say in words, for who cannot see it, what each plot in the outputs shows: as ``plots`` does, else the heading."""
    from finetuning import plots

    heading = ""
    for cell in notebook.cells:
        heading = next(iter(re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)), heading)
        drawn = re.search(r"plots\.(plot_\w+)", cell.source)
        words = getattr(plots, drawn[1]).__doc__.splitlines()[0] if drawn else f"Plot: {heading}."
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata["alt"] = words.replace("``", "")


def notebook_page(notebook: "NotebookNode", title: str, links: str, names: list[str]) -> str:
    """A notebook as an HTML page with everything inside that it needs, ``links`` above it and links to ``names``.

    What is wider than a screen scrolls by itself, also by the keyboard.
    """

    def to_scroll(text: re.Match) -> str:
        columns = ' class="columns"' if re.search(r"\S {3,}\S|^ {4}", text[1], re.MULTILINE) else ""
        return f'<pre tabindex="0"{columns}>{text[1]}</pre>'

    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lesson", extra_template_basedirs=[str(TEMPLATES)])
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    describe_plots(notebook)
    notebook.cells = [cell for cell in notebook.cells if not cell.id.endswith("-setup")]
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}, "links": links})
    for picture in (home() / "img").glob("*.svg"):
        page = page.replace(f'src="../img/{picture.name}"', f'src="{_inside(picture.read_bytes())}"')
    wide = '<div class="scroll" role="group" aria-label="Table" tabindex="0">'
    page = re.sub(r"<table.*?</table>", rf"{wide}\g<0></div>", page, flags=re.DOTALL)
    page = re.sub(r"<pre>(.*?)</pre>", to_scroll, page, flags=re.DOTALL)
    page = page.replace("<p><img ", '<p class="scroll" tabindex="0"><img ').replace("<th></th>", "<td></td>")
    return link_pages(page, names)


def write_report(workspace: Workspace, site: Path | None = None) -> Path:
    """``report.html`` and a page per executed lesson beside it, linked; returns its path.

    In the run's folder, or in that of a ``site``, to whose front page they then link. Nothing is fetched when a page is
    opened.
    """
    import nbformat
    from jinja2 import Environment, FileSystemLoader

    folder, front = site or workspace.path, ['<a href="../index.html">course</a>'] if site else []
    names = [name for name in LESSONS if (workspace.notebooks / f"{name}.ipynb").exists()] + ["glossary"]
    lessons, notebooks = [], []
    for name in names:
        place = home() / "notebooks" if name == "glossary" else workspace.notebooks
        notebooks.append(nbformat.read(place / f"{name}.ipynb", as_version=4))
        first = notebooks[-1].cells[0].source
        title, seconds = title_of(name, notebooks[-1]), execution_mark(notebooks[-1]).get("seconds")
        lessons.append((name, title, "".join(re.findall(r"Reading time (\d+ minutes?)", first)), duration(seconds)))
    for i, notebook in enumerate(notebooks):
        near = [f'<a href="{name}.html">{title}</a>' for name, title, *_ in lessons[max(i - 1, 0) : i + 2]]
        near.pop(min(i, 1))  # the page itself
        links = " · ".join([*front, '<a href="../report.html">results</a>', *near])
        page = notebook_page(notebook, lessons[i][1], links, names)
        write_atomically(folder / "notebooks" / f"{names[i]}.html", page)
    template = Environment(loader=FileSystemLoader(ASSETS), autoescape=True).get_template("report.html.j2")
    page = template.render(lessons=lessons, front=bool(front), **_contents(workspace))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _contents(workspace: Workspace) -> dict[str, Any]:
    """What the report shows of a run's results, by the names of its template."""
    import matplotlib

    matplotlib.use("agg")
    from finetuning import plots

    results = workspace.results()
    rows, sections = results.rows, []
    if rows:
        sections.append(_section("Which method is right how often", gain_sentences(results), plots.plot_results, rows))
    if sharded := rows_by_stage(results):
        held = {str(row.stage): row.bytes_per_rank or {} for row in sharded}
        sizes = ", ".join(f"{sum(parts.values()) / 2**20:,.1f} MiB in stage {stage}" for stage, parts in held.items())
        said = f"Of the training state each of {sharded[0].world_size} ranks holds {sizes}."
        sections.append(_section("Memory by stage of ZeRO", [said], plots.plot_rank_memory, {"all ranks alike": held}))
    if speeds := sorted((row.predict_reviews_per_second, row.method) for row in rows if row.predict_reviews_per_second):
        (low, slow), (high, quick) = speeds[0], speeds[-1]
        said = f"{quick} predicts {high:,.0f} reviews per second, {slow} {low:,.0f}."
        sections.append(_section("Speed, and what accuracy costs", [said], plots.plot_price, rows))
    return {
        "sections": sections, "table": results_table(results).to_html(border=0, index=False),
        "caption": caption(results), "started": results.run["started"][:10],
        "took": duration(results.run["seconds"] or None), "error": _hardest_error(workspace),
    }  # fmt: skip


def _inside(picture: bytes) -> str:
    """The address of an SVG picture that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"


def _section(title: str, said: list[str], draw: Callable, data: Any) -> dict[str, Any]:
    """A section of the report: its title, sentences, and a plot inside its address, with the words that it has."""
    import matplotlib.pyplot as plt

    with io.BytesIO() as drawn:
        draw(data).savefig(drawn, format="svg", metadata={"Date": None})
        plt.close()
        picture = _inside(drawn.getvalue())
    return {"title": title, "said": said, "picture": picture, "alt": str(draw.__doc__).splitlines()[0]}


def _hardest_error(workspace: Workspace) -> dict[str, Any] | None:
    """The test review on which the fine-tuned model was surest and wrong; None where that is not known."""
    from datasets import load_from_disk

    scores = workspace.scores("trainer")
    if scores is None or find_damage(workspace.data / "reviews"):
        return None
    test = load_from_disk(workspace.data / "reviews")["test"]
    if len(test) != len(scores) or not len(wrong := np.flatnonzero(scores.argmax(axis=1) != test["label"][:])):
        return None
    row = int(wrong[scores[wrong].max(axis=1).argmax()])
    said, meant = (test.features["label"].names[int(label)] for label in (scores[row].argmax(), test[row]["label"]))
    return {"text": test[row]["text"], "said": said, "meant": meant, "sure": scores[row].max(), "wrong": len(wrong)}
