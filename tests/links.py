"""Links inside the repository that lead nowhere: ``python tests/links.py`` names them, and fails when there are any.

Looks at every Markdown file and notebook: the file must be there, and the heading too where a link names one.
``dead_ends`` does so for the pages that are made of them.
"""

import html
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def documents(root):
    """The Markdown files and notebooks of the course."""
    folders = (root, root / ".github", root / "notebooks", root / "src")
    found = [*root.glob("*.md"), *(path for folder in folders[1:] for path in folder.rglob("*"))]
    return sorted(path for path in found if path.suffix in (".md", ".ipynb") and ".ipynb_checkpoints" not in path.parts)


def prose(path):
    """The Markdown of a file, that of a notebook's cells one below the other."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return CODE.sub("", text)


def anchors(path, inside):
    """What a link may write behind ``#``; ``inside``: the link stands in that very file.

    To another notebook, the id of a cell: Jupyter finds it when the link opens the notebook, and nbconvert's pages have
    it. Inside a notebook a heading with its words joined; to Markdown GitHub's form of one, small and without marks.
    """
    headings = re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE)
    if path.suffix != ".ipynb":
        return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower() for heading in headings}
    if inside:
        return {heading.replace(" ", "-") for heading in headings}
    return {f"cell-id={cell['id']}" for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


def broken(root):
    """The links that lead nowhere, as (path of the document, target)."""
    found = []
    for path in documents(root):
        for target in LINK.findall(prose(path)):
            if re.match(r"[a-z]+:", target):
                continue  # the world outside
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            if not there.exists() or (anchor and anchor not in anchors(there, inside=not file)):
                found.append((path.relative_to(root), target))
    return found


def dead_ends(folder):
    """Links and pictures of the pages in a folder that lead nowhere or out of it, as (page, target)."""
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for target in re.findall(r'<(?:a|img|script|link)\b[^>]*?(?:href|src)="([^"]*)"', page):
            if re.match(r"data:|https?://", target):
                continue
            file, _, place = html.unescape(unquote(target)).partition("#")
            there = (path.parent / file).resolve() if file else path
            inside = there.is_relative_to(folder.resolve()) and there.is_file()
            if not inside or (place and f'id="{place}"' not in html.unescape(pages.get(there, ""))):
                found.append((path.name, target))
    return found


if __name__ == "__main__":
    links = broken(ROOT)
    for path, target in links:
        print(f"{path}: {target} leads nowhere")
    sys.exit(bool(links))
