"""The exercises answer, the quizzes explain, the guesses stand beside the outcomes, and the times add up."""

import itertools
import re

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT

from authoring.minutes import announced
from finetuning import check
from finetuning.check import feedback
from finetuning.errors import CourseError

# lesson -> the objectives of its first cell, in their order, and the exercises that serve each of them
SERVED = {
    "01": [["leaks"], ["star_words"], ["length_limit"], ["padding_waste"]],
    "02": [["majority"], ["decisive_word"], ["choose_prompt"], ["interval"]],
    "03": [["mask_padding"], ["positive_probability"], ["pick_training"], ["pick_training"], ["bought"]],
    "04": [["zero_bytes"], ["zero_bytes", "reshard"], ["accumulated_loss", "reshard"], ["lowest_stage"]],
    "05": [["mcnemar"], ["calibration_error"], ["negation_slice"], ["stream_answers"]],
}

# exercise -> answers that are wrong in the usual ways, and what the check says to each
WRONG = {
    "leaks": [
        ("lambda train, test: sum(text in test for text in train)", "in other letters got away"),
        ("lambda train, test: len(set(map(F, train)) & set(map(F, test)))", "count reviews, not different texts"),
        ("lambda train, test: sum(any(F(t) in F(r) for t in test) for r in train)", "only begins like"),
        ("lambda train, test: sum(F(t) == F(r) for t in test for r in train)", "counted more than once"),
        ("lambda train, test: sum(map(F, train).count(F(t)) for t in train)", "stopped with AttributeError"),
    ],
    "star_words": [
        ("lambda stars: [int(s >= 7) for s in stars]", "needs the label words"),
        ("lambda stars: ['positive' if s <= 4 else 'negative' if s >= 7 else None for s in stars]", "swapped"),
        ("lambda stars: ['Negative' if s <= 4 else 'Positive' for s in stars]", "spelt so"),
        ("lambda stars: ['negative' if s <= 5 else 'positive' for s in stars]", "neither praise nor blame"),
        ("lambda stars: ['negative' if s < 4 else 'positive' if s > 7 else None for s in stars]", "look at the borders"),
        ("lambda stars: ['negative' if s <= 4 else 'positive' for s in stars if s not in (5, 6)]", "one entry per review"),
    ],
    "length_limit": [
        ("lambda lengths, share: int(np.quantile(lengths, share)) // 10 * 10", "the other way round"),
        ("lambda lengths, share: np.quantile(lengths, 1 - share)", "quantile interpolates"),
        ("lambda lengths, share: max(lengths)", "a smaller limit"),
        ("lambda lengths, share: 50", "of 10 reviews are cut"),
        ("lambda lengths, share: max(lengths) - 20 if share else max(lengths)", "mind equal lengths"),
    ],
    "padding_waste": [
        ("lambda lengths, size: 1 - sum(lengths) / (len(lengths) * max(lengths))", "longest of all"),
        (
            "lambda lengths, size: sum(max(lengths[i:i + size]) * len(lengths[i:i + size])"
            " for i in range(0, len(lengths), size)) / sum(lengths) - 1",
            "padding against real tokens",
        ),
        (
            "lambda lengths, size: 1 - sum(lengths[:len(lengths) // size * size]) /"
            " sum(max(lengths[i:i + size]) * size for i in range(0, len(lengths) - size + 1, size))",
            "the last batch is smaller",
        ),
        ("lambda lengths, size: 28 / 30", "share of real tokens"),
        ("lambda lengths, size: 6.666667", "not a percentage"),
    ],
    "majority": [
        ("lambda train, test: max(np.mean(test), 1 - np.mean(test))", "chosen by the test labels"),
        ("lambda train, test: max(np.mean(train), 1 - np.mean(train))", "it is measured on test"),
        ("lambda train, test: int(np.mean(train) > 0.5)", "that is the label itself"),
        ("lambda train, test: np.mean(test)", "always answer 1"),
    ],
    "decisive_word": [
        ("lambda text, weights: max(text.split(), key=lambda w: abs(weights.get(w, 0)))", "'slow' stands there twice"),
        ("lambda text, weights: max(text.split(), key=lambda w: text.count(w) * weights.get(w, 0))", "towards positive"),
        ("lambda text, weights: max(weights, key=lambda w: abs(weights[w]))", "does not occur in that text"),
        ("lambda text, weights: max(text.split(), key=text.split().count)", "a word without a weight"),
        ("lambda text, weights: max(text.split(), key=lambda w: abs(text.count(w) * weights[w]))", "KeyError"),
        ("lambda text, weights: weights['slow']", "the word itself"),
    ],
    "choose_prompt": [
        ("lambda validation, test: (max(test, key=test.get), max(test.values()))", "best on test"),
        ("lambda validation, test: max(validation.items(), key=lambda kv: kv[1])", "helped to choose it"),
        ("lambda validation, test: max(validation, key=validation.get)", "return two things"),
    ],
    "interval": [
        ("lambda right, n: (right / n - 0.04, right / n + 0.04)", "one standard error on either side"),
        ("lambda right, n: (right / n - 1.96 * 0.0016, right / n + 1.96 * 0.0016)", "square root"),
        ("lambda right, n: (right / n - 1.96 * 0.4, right / n + 1.96 * 0.4)", "divide by n"),
        ("lambda right, n: (right - 7.84, right + 7.84)", "counts or percentages"),
        ("lambda right, n: (0.7216, 0.8784)", "not for 300 of 400"),
    ],
    "mask_padding": [
        ("lambda labels, pad_id: labels", "still hold the pad id 0"),
        ("lambda labels, pad_id: [[t for t in row if t != pad_id] for row in labels]", "must stay a rectangle"),
        ("lambda labels, pad_id: [[t if t > 1 else -100 for t in row] for row in labels]", "the model must learn to stop"),
        ("lambda labels, pad_id: [[t or -1 for t in row] for row in labels]", "leaves out -100 and nothing else"),
        ("lambda labels, pad_id: [[t or -100 for t in row] for row in labels]", "use `pad_id`"),
    ],
    "positive_probability": [
        ("lambda logits, words: (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, words[1]]", "whole vocabulary"),
        ("lambda logits, words: 1 / (1 + np.exp(logits[:, words[1]] - logits[:, words[0]]))", "negative first"),
        ("lambda logits, words: logits[:, words[1]]", "these are logits"),
        ("lambda logits, words: logits[:, words].argmax(1)", "these are decisions"),
        ("lambda logits, words: np.exp(logits[:, words]) / np.exp(logits[:, words]).sum(1, keepdims=True)", "one number per review"),
    ],
    "pick_training": [
        ("lambda t: (min(t, key=lambda r: t[r][0]['loss']), 1, 2)", "a coin toss"),
        ("lambda t: (1e-3, 4, 4)", "a torn checkpoint"),
        ("lambda t: (1e-3, 3, 3)", "ship the best, not the last"),
        ("lambda t: (1e-3, 2, 2)", "pay for an epoch twice"),
        ("lambda t: (1e-3, 2, 3)", "belongs to one case"),
        ("lambda t: (min(t), 1, 2)", "too small"),
    ],
    "bought": [
        ("lambda a: (a['trainer'] - a['from_scratch'], a['trainer'] - a['as_shipped'])", "points of accuracy are hundredths"),
        ("lambda a: (100 * (a['trainer'] - a['as_shipped']), 100 * (a['trainer'] - a['from_scratch']))", "swapped"),
        ("lambda a: (100 * (a['from_scratch'] - a['majority']), 100 * (a['trainer'] - a['majority']))", "two things differ"),
        ("lambda a: (100 * (a['from_scratch'] - a['trainer']), 100 * (a['as_shipped'] - a['trainer']))", "sign is turned"),
        ("lambda a: (100 * (a['trainer'] - a['from_scratch']), 100 * (a['trainer'] - a['tfidf']))", "another kind of model"),
    ],
    "zero_bytes": [
        ("lambda n, stage, ranks: 12 * n", "master copy"),
        ("lambda n, stage, ranks: 16 * n / ranks", "stage 0 shards nothing"),
        ("lambda n, stage, ranks: 16 * n if stage == 0 else 16 * n / ranks", "you divide everything"),
        ("lambda n, stage, ranks: [16 * n, 4 * n + 12 * n / ranks, 4 * n + 12 * n / ranks, 16 * n / ranks][stage]", "1 and 2 come out alike"),
        ("lambda n, stage, ranks: [16 * n, *[4 * n + 12 * n / ranks], *2 * [2 * n + 14 * n / ranks]][stage]", "2 and 3 come out alike"),
        ("lambda n, stage, ranks: 128 * n", "these are bits"),
    ],
    "reshard": [
        ("lambda s, n, r: [sum(s, [])[:n][i:i + -(-n // r)] for i in range(0, n, -(-n // r))]", "shorter than the others"),
        ("lambda s, n, r: [(sum(s, [])[:n] + [0] * r)[i::r][:-(-n // r)] for i in range(r)]", "dealt out like cards"),
        ("lambda s, n, r: [sum(s, [])] if r == 1 else [[1, 2, 3], [4, 5, 6], [7, 0, 0]]", "old padding is still there"),
        ("lambda s, n, r: sum(s, [])[:n]", "one shard for each of the new ranks"),
    ],
    "accumulated_loss": [
        ("lambda m: sum(sum(x) / len(x) for x in m)", "you add up averages"),
        ("lambda m: sum(sum(x) / len(x) for x in m) / len(m)", "you average averages"),
        ("lambda m: sum(map(sum, m))", "that is the sum"),
        ("lambda m: sum(map(sum, m)) / len(m)", "number of micro-batches"),
    ],
    "lowest_stage": [
        ("lambda n, r, m: 3 if 16 * n / r <= m else None", "take the lowest"),
        ("lambda n, r, m: next((s for s, b in enumerate((16, 10, 9, 8)) if n * b < m), None)", "just enough for stage 0"),
        ("lambda n, r, m: next((s for s, b in enumerate((12, 8, 7, 6)) if n * b <= m), None)", "count the master copy"),
        ("lambda n, r, m: next((s for s, b in enumerate((16, 10, 9, 8)) if n * b <= m), 3)", "return None"),
    ],
    "mcnemar": [
        ("lambda a, b: 0.0546875", "that is one tail"),
        ("lambda a, b: 0.0577795", "chi-square approximation; with so few"),
        ("lambda a, b: 0.2100244", "for all 23 reviews"),
        ("lambda a, b: 0.109375", "p is 1"),
    ],
    "negation_slice": [
        ("lambda text: 'not' in text.lower()", "didn't laugh"),
        ("lambda text: ' not ' in text", "misses capital letters"),
        ("lambda text: any(w in text.lower() for w in ('not', 'n\\'t', 'never', 'without', 'no '))", "inside other words"),
        ("lambda text: True", "inside other words"),
    ],
    "stream_answers": [
        ("lambda texts, predict, size: predict(list(texts))", "a list holds the answers"),
        ("lambda texts, predict, size: iter(predict(list(texts)))", "read before the first answer"),
        ("lambda texts, predict, size: (predict([text])[0] for text in texts)", "for single reviews"),
        ("lambda texts, predict, size: (a for _ in range(2) for a in predict([next(texts) for _ in range(size)]))", "last review is missing"),
        ("lambda texts, predict, size: (a for a in predict([next(texts) for _ in range(5)]))", "3 is the most"),
    ],
    "calibration_error": [
        ("lambda c, r, e: np.mean([abs(c[b].mean() - r[b].mean()) for b in B(c, e)])", "a bin with more reviews must weigh more"),
        ("lambda c, r, e: sum(abs(c[b].mean() - r[b].mean()) for b in B(c, e))", "without weighting"),
        ("lambda c, r, e: c.mean() - r.mean()", "the gaps cancel"),
        ("lambda c, r, e: abs(c - r).mean()", "review by review"),
        ("lambda c, r, e: sum(b.mean() * abs(c[b].mean() - r[b].mean()) for b in B(c, e))", "leave empty bins out"),
    ],
}  # fmt: skip


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
    feedback._wrong.clear()


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
    assert capsys.readouterr().out.strip() == feedback.OPEN
    assert not feedback._wrong


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
def test_usual_mistakes_are_recognised_by_name(name, capsys):
    import numpy as np

    from finetuning.data import fingerprint

    def bins(confidence, edges):
        return [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]

    said = []
    for source, expected in WRONG[name]:
        feedback._wrong.clear()
        NAMED[name](eval(source, {"np": np, "F": fingerprint, "B": bins}))
        answered = capsys.readouterr().out
        assert answered.startswith("Not yet: ") and expected in answered, (source, answered)
        said.append(answered)
    assert len(set(said)) >= max(2, len(said) - 1)


@pytest.mark.parametrize("name", NAMED)
def test_hints_grow_more_specific_and_end_at_the_solution(name, capsys):
    wrong = lambda *given: "nonsense"  # noqa: E731
    answers = []
    for _ in range(5):
        NAMED[name](wrong)
        answers.append(capsys.readouterr().out)
    hints = NAMED[name].hints
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
    assert found[f"{lesson}-quiz"].endswith(check.quiz_markdown(lesson))
    assert f'check.quiz("{lesson}", "")' in found[f"{lesson}-quiz-answers"]
    before, folded = found[f"{lesson}-quiz"].split("<details>")
    for question in feedback.questions(lesson):
        for letter in feedback.letters(question):
            assert question[letter][1] in folded and question[letter][1] not in before


@pytest.mark.parametrize("lesson", check.EXERCISES)
def test_right_answers_pass_and_each_wrong_choice_is_explained(lesson, capsys):
    asked = feedback.questions(lesson)
    assert 4 <= len(asked) <= 6
    key = [question["right"] for question in asked]
    assert len(set(key)) > 2  # no letter to bet on
    check.quiz(lesson, " ".join(key))
    said = capsys.readouterr().out
    assert f"{len(asked)} of {len(asked)} right." in said and "not so" not in said
    for i, question in enumerate(asked):
        for letter in feedback.letters(question):
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
        ("a b", "2 answers were given"),
        ("x c a d b", "no such choice"),
    ):
        check.quiz("01", answers)
        assert expected in capsys.readouterr().out
    check.quiz("01", "BCADB")
    assert "5 of 5 right" in capsys.readouterr().out
    with pytest.raises(CourseError, match="no quiz for lesson '99'; choose one of 01, 02"):
        check.quiz("99")


# Guesses


@pytest.mark.parametrize(
    ("guess", "outcome", "expected"),
    [
        (None, 0.5, "Outcome: 50.0%. (No guess stored.)"),
        (0.52, 0.5, "Your guess: 52.0%. Outcome: 50.0%. Well guessed."),
        (0.9, 0.5, "too high"),
        (0.1, 0.5, "too low"),
        (50, 0.5, "A share lies between 0 and 1."),
        ("half", 0.5, "is no number"),
        (float("nan"), 0.5, "is no number"),
    ],
)
def test_a_guess_stands_beside_the_outcome(guess, outcome, expected, capsys):
    check.compare(guess, outcome, "{:.1%}")
    assert expected in capsys.readouterr().out


def test_a_guess_in_words(capsys):
    check.compare("Zero2 ", "zero2")
    check.compare("zero3", "zero2")
    said = capsys.readouterr().out.splitlines()
    assert "As you said." in said[0] and "Not what you expected" in said[1]


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
    headings = sum(len(re.findall(r"^##+ (?!You can now|Glossary)", cell.source, re.MULTILINE)) for cell in cells(path)
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
    assert f"| all |  | {sum(minutes_of(path)[0] for path in NOTEBOOKS)} minutes |" in readme


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


def glossary():
    text = next(cell.source for cell in cells(ROOT / "notebooks" / "00_welcome.ipynb") if cell.id == "00-glossary")
    return re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|", text, re.MULTILINE)


def test_the_glossary_closes_the_welcome_and_the_lessons_link_to_it():
    assert cells(ROOT / "notebooks" / "00_welcome.ipynb")[-1].id == "00-glossary"
    terms = [term.lower() for term, _ in glossary()]
    assert terms == sorted(terms) and len(set(terms)) == len(terms)
    for term in ("fine-tuning", "checkpoint", "epoch", "micro-batch", "gradient accumulation", "optimizer state", "rank",
                 "world size", "shard", "token", "prompt", "baseline", "bootstrap interval", "calibration"):  # fmt: skip
        assert term in terms
    for path in LESSONS:
        assert "(00_welcome.ipynb#Glossary)" in cells(path)[0].source
