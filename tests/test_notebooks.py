"""What every notebook must be, whatever it teaches."""

import ast
import re
import subprocess
import symtable
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT

from authoring import first_cell
from finetuning.workspace import LESSONS

PARAMETERS = {"profile", "reviews", "base_model", "limit", "seed", "run", "own_columns"}
FORBIDDEN = re.compile(
    r"\bpip\b|\bconda\b|^\s*[!%]|requests\.|urllib|wget|curl|notebook_login|push_to_hub\(", re.MULTILINE
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def lesson(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_the_lessons_are_the_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(LESSONS)


def test_one_parameters_cell_of_plain_literals_all_used(lesson):
    _, notebook = lesson
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {
        statement.targets[0].id
        for statement in ast.parse(tagged[0].source).body
        if ast.literal_eval(statement.value) is not None
    }
    assert names == PARAMETERS
    rest = "\n".join(cell.source for cell in code_cells(notebook) if cell is not tagged[0])
    used = {
        node.id for node in ast.walk(ast.parse(rest)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert used >= PARAMETERS


def test_no_output_is_committed(lesson):
    _, notebook = lesson
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None, cell.id


def test_cell_ids_are_stable(lesson):
    path, notebook = lesson
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell_id in ids:
        assert re.fullmatch(rf"{path.stem[:2]}-[a-z0-9-]+", cell_id), cell_id


def test_the_first_cell_sets_the_course_up_and_is_the_same_everywhere(lesson):
    path, notebook = lesson
    tagged = [cell for cell in code_cells(notebook) if "setup" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is notebook.cells[1]
    assert tagged[0].id == f"{path.stem[:2]}-setup"
    assert tagged[0].source == first_cell.setup_code(), "run make readme"
    assert tagged[0].metadata["jupyter"] == {"source_hidden": True}


def test_no_other_cell_installs_or_reaches_the_network(lesson):
    _, notebook = lesson
    for cell in code_cells(notebook)[1:]:
        assert not FORBIDDEN.search(cell.source), cell.source


def test_opens_with_title_objectives_time_and_roadmap(lesson):
    path, notebook = lesson
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert 3 <= len(re.findall(r"^- ", first, re.MULTILINE)) <= 5
    assert re.search(r"Reading time \d+ minutes", first) and "`pocket`" in first and "`small`" in first
    assert f"roadmap_{path.stem[:2]}.svg" in first


def test_every_picture_has_words_and_exists(lesson):
    _, notebook = lesson
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", cell.source):
                assert len(words) > 20, target
                assert (ROOT / "notebooks" / target).resolve().is_file(), target


def test_links_between_lessons_lead_somewhere(lesson):
    _, notebook = lesson
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((\w[\w./]*\.ipynb)\)", cell.source):
                assert (ROOT / "notebooks" / target).is_file(), target


def test_cells_are_small(lesson):
    _, notebook = lesson
    cells = [cell for cell in code_cells(notebook) if not cell.id.endswith("-imports")]
    lines = sorted(len(cell.source.splitlines()) for cell in cells)
    assert lines[len(lines) // 2] <= 6
    assert lines[-1] <= 20


def test_prose_holds_no_measured_number(lesson):
    """Accuracies and speeds come from runs: no decimal fraction and no 'x reviews per second' in the prose."""
    _, notebook = lesson
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            text = re.sub(r"\(https?://[^)]*\)", "", cell.source)
            assert not re.search(r"\b0\.\d+|\d+(\.\d+)? ?%(?! of (a|these|its))(?<!95 %)", text), cell.source


def names_of(table, used=False):
    """The names to which a cell itself gives a value; or, ``used``, those of the kernel that it reads."""
    if not used:
        return {name.get_name() for name in table.get_symbols() if name.is_assigned()}
    inner = {name for child in table.get_children() for name in names_of(child, used=True)}
    at_top = table.get_type() == "module"
    return inner | {
        name.get_name() for name in table.get_symbols() if name.is_referenced() and (at_top or name.is_global())
    }


def test_no_later_cell_overwrites_a_number_of_the_summary(lesson):
    """What the summary reads was given its value in one cell, so that it is what its name says."""
    path, notebook = lesson
    tables = {cell.id: symtable.symtable(cell.source, cell.id, "exec") for cell in code_cells(notebook)}
    for summary in (table for cell, table in tables.items() if cell.endswith("-close-numbers")):
        for name in names_of(summary, used=True) - names_of(summary):
            cells = [cell for cell, table in tables.items() if name in names_of(table)]
            assert len(cells) <= 1, f"{path.stem}: {name} is assigned in {', '.join(cells)}"


def test_a_lesson_that_imports_from_the_workshop_is_refused(lesson):
    path, notebook = lesson
    ruff = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", str(path), "-"]
    assert (
        subprocess.run(ruff, input=nbformat.writes(notebook), capture_output=True, text=True, cwd=ROOT).returncode == 0
    )
    notebook.cells.append(nbformat.v4.new_code_cell("from authoring.figures import draw"))
    refused = subprocess.run(ruff, input=nbformat.writes(notebook), capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1 and "no lesson" in refused.stdout
