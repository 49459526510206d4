"""The report of a run: ``report.html`` and a page per executed lesson."""

import base64
import re
from pathlib import Path

from finetuning.files import write_atomically
from finetuning.profiles import ASSETS
from finetuning.results import caption, results_table
from finetuning.workspace import LESSONS, Workspace, home


def _with_pictures(page: str) -> str:
    """The page with the lessons' figures inside it; the exporter's own way to do that would unfold what is folded away.

    A figure that is not there keeps its name, and the page shows its alternative text.
    """

    def inside(link: re.Match) -> str:
        picture = home() / "img" / link[1]
        if not picture.exists():
            return link[0]
        return f'src="data:image/svg+xml;base64,{base64.b64encode(picture.read_bytes()).decode()}"'

    return re.sub(r'src="\.\./img/([\w.-]+)"', inside, page)


def write_report(workspace: Workspace) -> Path:
    """``report.html`` and one page per executed lesson beside the notebooks, linked; returns its path.

    Everything a page needs is inside it: no script or style is fetched when it is opened.
    """
    import nbformat
    from jinja2 import Environment
    from nbconvert import HTMLExporter

    results = workspace.results()
    done = [lesson for lesson in LESSONS if (workspace.notebooks / f"{lesson}.ipynb").exists()]
    exporter = HTMLExporter(
        template_name="lab", mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="", widget_renderer_url=""
    )
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    titles = {}
    for i, lesson in enumerate(done):
        notebook = nbformat.read(workspace.notebooks / f"{lesson}.ipynb", as_version=4)
        titles[lesson] = notebook.cells[0].source.splitlines()[0].strip("# ")
        page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": lesson}})
        links = ['<a href="../report.html">results</a>']
        links += [
            f'<a href="{near}.html">{near}</a>' for near in (done[i - 1] if i else None, *done[i + 1 : i + 2]) if near
        ]
        bar = f'<nav style="font:16px sans-serif;padding:12px 24px">{" · ".join(links)}</nav>'
        page = re.sub(r"<script[^>]*\ssrc=[^>]*></script>", "", page)
        page = _with_pictures(page).replace("<main>", bar + "<main>", 1)
        write_atomically(workspace.notebooks / f"{lesson}.html", page)
    table = results_table(results)
    template = Environment(autoescape=True).from_string((ASSETS / "report.html.j2").read_text(encoding="utf-8"))
    shown = table.to_html(border=0, index=False) if len(table) else ""
    page = template.render(table=shown, caption=caption(results), titles=titles)
    write_atomically(workspace.path / "report.html", page)
    return workspace.path / "report.html"
