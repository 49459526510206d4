"""The exercises answer, the quizzes explain, the guesses stand beside the outcomes, and the times add up."""

import re

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS, ROOT

from authoring.minutes import announced
from authoring.quiz_cell import quiz_markdown
from finetuning import check
from finetuning.check import exercise
from finetuning.check.quiz import letters, questions
from finetuning.errors import CourseError

# lesson -> the objectives of its first cell, in their order, and the exercises that serve each of them
SERVED = {
    "01": [["leaks"], ["star_words"], ["length_limit"], ["padding_waste"]],
    "02": [["majority"], ["decisive_word"], ["choose_prompt"], ["interval"]],
    "03": [["mask_padding"], ["positive_probability"], ["pick_training"], ["pick_training"], ["gains"]],
    "04": [["zero_bytes"], ["accumulated_loss"], ["zero_bytes"], ["lowest_stage"]],
    "05": [["place"], ["reshard"], ["bf16_copies"], ["split_batch"]],
    "07": [["mcnemar"], ["calibration_error"], ["negation_slice"], ["stream_answers"]],
}


def cells(path):
    return nbformat.read(path, as_version=4).cells


def exercises(path):
    """The exercises of a lesson: a list of (task, gap, solution) cells."""
    found = cells(path)
    numbers = [i for i, cell in enumerate(found) if "-gap-" in cell.id]
    return [(found[i - 1], found[i], found[i + 1]) for i in numbers]


LESSONS = [path for path in NOTEBOOKS if path.stem[:2] in SERVED]
ALL = [
    pytest.param(path, *found, id=f"{path.stem[:2]} {found[1].id[7:]}") for path in LESSONS for found in exercises(path)
]
NAMED = {one.__name__: one for found in check.EXERCISES.values() for one in found}


@pytest.fixture(autouse=True)
def nothing_failed_yet():
    exercise._wrong.clear()


def names_of(path):
    """What the lesson's import cell brings in, for running its exercises by themselves."""
    names = {}
    exec(next(cell.source for cell in cells(path) if cell.id.endswith("-imports")), names)
    return names


def call(gap):
    """The line of a gap cell that hands the answer to its check."""
    return next(line for line in gap.source.splitlines() if line.startswith("check."))


@pytest.mark.parametrize(("path", "task", "gap", "solution"), ALL)
def test_an_untouched_gap_is_answered_kindly(path, task, gap, solution, capsys):
    exec(gap.source, names_of(path))
    assert capsys.readouterr().out.strip() == exercise.OPEN
    assert not exercise._wrong


@pytest.mark.parametrize(("path", "task", "gap", "solution"), ALL)
def test_the_printed_solution_passes(path, task, gap, solution, capsys):
    names = names_of(path)
    for block in re.findall(r"```python\n(.*?)```", solution.source, re.DOTALL):
        exec(block, names)
    exec(call(gap), names)
    assert capsys.readouterr().out.startswith("Right. ")


@pytest.mark.parametrize(("path", "task", "gap", "solution"), ALL)
def test_the_solution_is_folded_and_the_gap_is_a_gap(path, task, gap, solution):
    assert re.match(r"### Exercise: .+\n\*\d+ minutes\*\n", task.source)
    assert solution.source.startswith("<details><summary>Solution</summary>\n\n")
    assert solution.source.endswith("\n\n</details>") and solution.source.count("<details") == 1
    assert "..." in gap.source and "return" not in gap.source.split("#")[0]
    assert not re.search(r"```python", task.source)


@pytest.mark.parametrize("name", NAMED)
def test_hints_grow_more_specific_and_end_at_the_solution(name, capsys):
    wrong = lambda *given: "nonsense"  # noqa: E731
    answers = []
    for _ in range(5):
        NAMED[name](wrong)
        answers.append(capsys.readouterr().out)
    hints = exercise.texts(NAMED[name].__module__[-2:])[name]["hints"]
    assert len(set(hints)) == 3
    assert "Hint" not in answers[0]
    for answer, hint in zip(answers[1:4], hints, strict=True):
        assert f"Hint: {hint}" in answer
    assert "is folded below" not in answers[3] and "is folded below" in answers[4]


def without_return(*given):
    str(given)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "answer", [3, "text", [1, 2], len, without_return, lambda: 1, lambda *given: float("nan"), lambda *given: [given]]
)
def test_no_answer_stops_the_notebook(name, answer, capsys):
    NAMED[name](answer)
    assert capsys.readouterr().out.startswith("Not yet: ")


def test_an_answer_that_changes_what_it_is_given_is_judged_by_what_it_returns(capsys):
    def in_place(labels, pad_id):
        for row in labels:
            row[:] = [-100 if token == pad_id else token for token in row]
        return labels

    check.mask_padding(in_place)
    assert capsys.readouterr().out.startswith("Right.")


def test_every_objective_is_served_by_an_exercise():
    for path in LESSONS:
        objectives = re.findall(r"^- ", cells(path)[0].source, re.MULTILINE)
        lesson = path.stem[:2]
        assert len(SERVED[lesson]) == len(objectives), path.stem
        served = {name for names in SERVED[lesson] for name in names}
        in_the_notebook = [re.match(r"check\.(\w+)\(", call(gap)).group(1) for _, gap, _ in exercises(path)]
        assert served == set(in_the_notebook) and 3 <= len(in_the_notebook) <= 4
        assert in_the_notebook == [one.__name__ for one in check.EXERCISES[lesson]]


# Quizzes


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_shows_the_quiz_that_the_checker_marks(path):
    lesson = path.stem[:2]
    found = {cell.id: cell.source for cell in cells(path)}
    assert found[f"{lesson}-quiz"].endswith(quiz_markdown(lesson))
    assert f'check.quiz("{lesson}", "")' in found[f"{lesson}-quiz-answers"]
    before, folded = found[f"{lesson}-quiz"].split("<details>")
    for question in questions(lesson):
        for letter in letters(question):
            assert question[letter][1] in folded and question[letter][1] not in before


@pytest.mark.parametrize("lesson", check.EXERCISES)
def test_right_answers_pass_and_each_wrong_choice_is_explained(lesson, capsys):
    asked = questions(lesson)
    assert 4 <= len(asked) <= 6
    key = [question["right"] for question in asked]
    assert len(set(key)) > 2  # no letter to bet on
    check.quiz(lesson, " ".join(key))
    said = capsys.readouterr().out
    assert f"{len(asked)} of {len(asked)} right." in said and "not so" not in said
    for i, question in enumerate(asked):
        for letter in letters(question):
            assert question[letter][1] in said
            if letter != question["right"]:
                check.quiz(lesson, " ".join([*key[:i], letter, *key[i + 1 :]]))
                answered = capsys.readouterr().out
                assert f"{i + 1} {letter}: not so. {question[letter][1]}" in answered
                assert question[question["right"]][1] not in answered  # the right one is still to be found
                assert f"{len(asked) - 1} of {len(asked)} right." in answered


def test_a_quiz_answers_whatever_it_is_given(capsys):
    for answers, expected in (
        ("", "Write one letter"),
        ("a b", "letters given: 2"),
        ("x c a d b", "no such choice"),
    ):
        check.quiz("01", answers)
        assert expected in capsys.readouterr().out
    key = [question["right"] for question in questions("01")]
    numbered = [f"{i}{letter}" for i, letter in enumerate(key, 1)]
    for answers in (
        "".join(key).upper(),
        ", ".join(key),
        ",".join(key),
        key,
        tuple(key),
        np.array(key),
        iter(key),
        " ".join(numbered),
        "".join(numbered),
        " ".join(reversed(numbered)),
        [f"{i}) {letter}" for i, letter in enumerate(key, 1)],
        "\n".join(f"{i}. {letter}" for i, letter in enumerate(key, 1)),
        dict(enumerate(key, 1)),
    ):
        check.quiz("01", answers)
        assert f"{len(key)} of {len(key)} right" in capsys.readouterr().out, answers
    for answers in (None, 5, [], {}):
        check.quiz("01", answers)
        assert "Write one letter" in capsys.readouterr().out
    with pytest.raises(CourseError, match="no quiz for lesson '99'; choose one of 01, 02"):
        check.quiz("99")


# Guesses


@pytest.mark.parametrize(
    ("guess", "outcome", "form", "measure", "expected"),
    [
        (None, 0.5, "{:.1%}", "share", "Outcome: 50.0%. (No guess stored.)"),
        (0.52, 0.5, "{:.1%}", "share", "Your guess: 52.0%. Outcome: 50.0%. Well guessed."),
        ("0.52", 0.5, "{:.1%}", "share", "Well guessed."),
        (np.float32(0.49), np.float64(0.5), "{:.1%}", "share", "Well guessed."),
        (0.86, 0.782, "accuracy {:.3f}", "share", "too high, by 7.8 points"),
        (0.02, 0.05, "{:.1%}", "share", "too low, by 3.0 points"),
        (50, 0.5, "{:.1%}", "share", "Your guess: 50.0%. Outcome: 50.0%. Well guessed."),
        ("51 %", 0.5, "{:.1%}", "share", "Your guess: 51.0%."),
        ("0.9%", 0.5, "{:.1%}", "share", "Your guess: 0.9%."),
        ("0,495", 0.5, "{:.1%}", "share", "Your guess: 49.5%."),
        (150, 0.5, "{:.1%}", "share", "A share lies between 0 and 1."),
        ("5 points", 5.5, "{:+.1f} points", "points", "Your guess: +5.0 points."),
        ("4x", 4.0, "{:.0f} times", "factor", "Well guessed."),
        ("10,000 reviews", 40, "{:,} reviews", "factor", "10,000 reviews. Outcome: 40 reviews. You guessed"),
        (1000, 4.0, "{:.0f} times", "factor", "too high, by a factor of 250.0:"),
        (10**400, 347, "{:,} reviews", "factor", "is no number"),
        (2, 0.4, "{:+.1f} points", "points", "too high, by 1.6 points"),
        (-1, -0.4, "{:+.1f} points", "points", "Well guessed."),
        (2, 2.15, "{:.1f} times", "factor", "Well guessed."),
        (1.5, 3.0, "{:.1f} times", "factor", "too low, by a factor of 2"),
        (-1, 3.0, "{:.1f} times", "factor", "too low: what"),
        (0, 0, "{:,} copies", "factor", "Your guess: 0 copies. Outcome: 0 copies. Well guessed."),
        (3, 0, "{:,} copies", "factor", "too high: what"),
        (1200, np.int64(1000), "{:,} reviews", "factor", "Your guess: 1,200 reviews. Outcome: 1,000 reviews."),
        ("half", 0.5, "{:.1%}", "share", "is no number"),
        (True, 0.5, "{:.1%}", "share", "is no number"),
        ([0.5, 0.6], 0.5, "{:.1%}", "share", "is no number"),
        (float("nan"), 0.5, "{:.1%}", "share", "is no number"),
    ],
)
def test_a_guess_stands_beside_the_outcome(guess, outcome, form, measure, expected, capsys):
    check.compare(guess, outcome, form, measure)
    assert expected in capsys.readouterr().out


def test_a_guess_in_words(capsys):
    for guess in ("Zero2 ", "ZeRO-2", "zero 2"):
        check.compare(guess, "zero2")
        assert "As you said." in capsys.readouterr().out
    for guess in ("negative, positive", ["negative", "positive"], "Negative  positive"):
        check.compare(guess, "negative positive")
        assert "As you said." in capsys.readouterr().out
    check.compare("zero3", "zero2")
    assert "Not what you expected" in capsys.readouterr().out


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_guesses_are_asked_before_the_result_and_compared_after_it(path):
    code = [cell for cell in cells(path) if cell.cell_type == "code"]
    asked = {}
    for i, cell in enumerate(code):
        for name in re.findall(r"^(guess_\w+) = None", cell.source, re.MULTILINE):
            asked[name] = i
    assert 3 <= len(asked) <= 6
    for name, i in asked.items():
        compared = [j for j, cell in enumerate(code) if f"check.compare({name}," in cell.source]
        assert len(compared) == 1 and compared[0] > i, name
        line = next(line for line in code[compared[0]].source.splitlines() if f"check.compare({name}," in line)
        shares = re.search("share|between 0 and 1|probability", code[i].source) or re.search("accuracy|%}", line)
        measure = "share" if shares else "points" if "points" in line else None
        assert re.findall(r'measure="(\w+)"', line) == ([measure] if measure else []), line


# Times and words


def minutes_of(path):
    """Minutes as the lesson states them: in its head, and section by section."""
    found = cells(path)
    stated = int(re.search(r"Reading time (\d+) minutes", found[0].source).group(1))
    parts = [int(m) for cell in found for m in re.findall(r"^##+ .*\n\*(\d+) minutes?\*$", cell.source, re.MULTILINE)]
    return stated, parts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_minutes_are_stated_for_every_section_and_add_up(path):
    stated, parts = minutes_of(path)
    headings = sum(len(re.findall(r"^##+ (?!You can now)", cell.source, re.MULTILINE)) for cell in cells(path)
                   if cell.cell_type == "markdown")  # fmt: skip
    assert len(parts) == headings
    assert sum(parts) == stated


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stated_minutes_are_those_of_the_formula(path):
    assert minutes_of(path) == announced(nbformat.read(path, as_version=4)), "run python -m authoring minutes"


def test_the_readme_gives_the_minutes_that_the_lessons_state():
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        assert re.search(rf"{path.name}\) \|[^|]*\| {minutes_of(path)[0]} minutes \|", readme), path.stem
    total = sum(minutes_of(path)[0] for path in NOTEBOOKS)
    assert f"| all |  | {total} minutes |" in readme and f"{total} minutes of reading" in readme


def test_the_formula_counts_words_code_exercises_and_waiting():
    def lesson(words, lines, run=0):
        head = f"# Title\n*Reading time 0 minutes. The cells run in {run} minutes.*"
        cells = [nbformat.v4.new_markdown_cell(head, id="09-title"),
                 nbformat.v4.new_markdown_cell("## One\n*0 minutes*\n\n" + "word " * words, id="09-one"),
                 nbformat.v4.new_code_cell("\n".join(["x = 1"] * lines), id="09-code"),
                 nbformat.v4.new_markdown_cell("### Exercise: it\n*0 minutes*", id="09-exercise-it")]  # fmt: skip
        return announced(nbformat.v4.new_notebook(cells=cells))

    total, (section, exercise) = lesson(2000, 20)
    assert total == section + exercise and exercise >= 3
    assert lesson(4000, 20)[1][0] > section and lesson(2000, 200)[1][0] > section
    assert lesson(2000, 20, run=7) == (total + 7, [section + 7, exercise])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_close_mirrors_the_objectives(path):
    found = cells(path)
    objectives = re.findall(r"^- ", found[0].source, re.MULTILINE)
    close = next(cell.source for cell in found if cell.id.endswith("-close"))
    assert close.startswith("## You can now") and len(re.findall(r"^- ", close, re.MULTILINE)) == len(objectives)


def test_the_glossary_is_in_order_explains_every_word_and_every_lesson_leads_to_it():
    text = "\n\n".join(cell.source for cell in cells(ROOT / "notebooks" / "glossary.ipynb"))
    terms = [term.lower() for term in re.findall(r"^## (.+)$", text, re.MULTILINE)]
    assert terms == sorted(terms) and len(set(terms)) == len(terms)
    assert len(re.findall(r"^## .+\n\n[^#\n].*\.$", text, re.MULTILINE)) == len(terms)
    needed = ["fine-tuning", "checkpoint", "epoch", "micro-batch", "gradient accumulation", "optimizer state", "rank"]
    needed += ["world size", "shard", "token", "prompt", "baseline", "bootstrap interval", "calibration"]
    for term in needed:
        assert term in terms
    for path in LESSONS:
        linked = re.findall(
            r"\(glossary\.ipynb(.*?)\)", cells(path)[0].source
        )  # links.py sees that they lead to a word
        assert linked[0] == "" and len(linked) > 3, path.stem
