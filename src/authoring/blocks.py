"""Blocks of a text that a command fills, between two marks."""

from finetuning.errors import CourseError


def fill_block(text: str, name: str, content: str, command: str) -> str:
    """``text`` with ``content`` put between its marks ``<!-- name: begin (command) -->`` and ``<!-- name: end -->``.

    Raises CourseError where the text has no such marks.
    """
    begin, end = f"<!-- {name}: begin ({command}) -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise CourseError(f"The text has lost the marks {begin} and {end}; put them back, each on a line of its own.")
    return f"{before}{begin}\n{content}\n{end}{after}"
