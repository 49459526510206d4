"""The report of a run: ``report.html``, a page per executed lesson, and the glossary."""

import base64
import re
from pathlib import Path

from finetuning.files import write_atomically
from finetuning.profiles import ASSETS
from finetuning.results import caption, results_table
from finetuning.workspace import LESSONS, Workspace, home


def link_pages(page: str, names: list[str]) -> str:
    """A notebook's page with links to the pages of ``names`` in place of notebooks; of other links the words stay."""

    def to_page(link: re.Match) -> str:
        return f'<a href="{link[1]}.html{link[2]}">{link[3]}</a>' if link[1] in names else link[3]

    return re.sub(r'<a href="(\w+)\.ipynb(#[^"]*|)">(.*?)</a>', to_page, page)


def _stand_alone(page: str) -> str:
    """The page without scripts from elsewhere, its figures inside; the exporter's own option unfolds what is folded."""

    def inside(link: re.Match) -> str:
        path = home() / "img" / link[1]
        encoded = base64.b64encode(path.read_bytes()).decode() if path.exists() else ""
        return f'src="data:image/svg+xml;base64,{encoded}"' if encoded else link[0]

    return re.sub(r'src="\.\./img/([\w.-]+)"', inside, re.sub(r"<script[^>]*\ssrc=[^>]*></script>", "", page))


def write_report(workspace: Workspace) -> Path:
    """``report.html`` and the pages beside the notebooks, linked; returns its path.

    Everything a page needs is inside it: no script or style is fetched when it is opened.
    """
    import nbformat
    from jinja2 import Environment
    from nbconvert import HTMLExporter

    results = workspace.results()
    done = [lesson for lesson in LESSONS if (workspace.notebooks / f"{lesson}.ipynb").exists()]
    elsewhere = ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url", "widget_renderer_url")
    exporter = HTMLExporter(template_name="lab", **dict.fromkeys(elsewhere, ""))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    titles, names = {}, [*done, "glossary"]
    for i, name in enumerate(names):
        folder = workspace.notebooks if name in done else home() / "notebooks"
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        notebook.cells = [cell for cell in notebook.cells if not cell.id.endswith("-setup")]
        titles[name] = notebook.cells[0].source.splitlines()[0].strip("# ")
        page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
        near = [f'<a href="{other}.html">{other}</a>' for other in names[max(i - 1, 0) : i] + names[i + 1 : i + 2]]
        links = " · ".join(['<a href="../report.html">results</a>', *near])
        page = page.replace("<main>", f'<nav style="font:16px sans-serif;padding:12px 24px">{links}</nav><main>', 1)
        write_atomically(workspace.notebooks / f"{name}.html", _stand_alone(link_pages(page, names)))
    table = results_table(results)
    template = Environment(autoescape=True).from_string((ASSETS / "report.html.j2").read_text(encoding="utf-8"))
    shown = table.to_html(border=0, index=False) if len(table) else ""
    page = template.render(table=shown, caption=caption(results), titles=titles)
    write_atomically(workspace.path / "report.html", page)
    return workspace.path / "report.html"
