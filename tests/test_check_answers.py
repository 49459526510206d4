"""Every exercise takes right answers of any style, and says of wrong ones what is wrong and nothing that is not so."""

import contextlib
import inspect
import io
import math
import re
import tomllib
from collections import Counter
from fractions import Fraction
from itertools import chain, islice

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy import stats

from finetuning import check
from finetuning.check import exercise
from finetuning.data import fingerprint
from finetuning.distributed.memory import expected_bytes

NAMED = {one.__name__: one for found in check.EXERCISES.values() for one in found}
LESSON = {one.__name__: lesson for lesson, found in check.EXERCISES.items() for one in found}

# exercise -> ``right``: answers of different styles; ``wrong``: pairs of an answer and what must be said to it
ANSWERS = {}
for path in sorted((ROOT / "tests" / "answers").glob("*.toml")):
    ANSWERS |= tomllib.loads(path.read_text())


def build(source):
    names = {"np": np, "pd": pd, "torch": torch, "re": re, "F": fingerprint}
    names |= {"math": math, "Counter": Counter, "Fraction": Fraction, "chain": chain, "islice": islice, "stats": stats}
    names |= {"expected_bytes": expected_bytes, "w": lambda text: re.sub("[,.]", "", text.lower()).split()}
    if source.startswith("lambda"):
        return eval(f"({source})", names)
    exec(source, names)
    return names["f"]


def said(name, answer):
    exercise._wrong.clear()
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        NAMED[name](answer)
    return shown.getvalue()


@pytest.mark.parametrize("name", NAMED)
def test_right_answers_of_any_style_are_taken(name):
    assert len(ANSWERS[name]["right"]) >= 4
    for source in ANSWERS[name]["right"]:
        answered = said(name, build(source))
        assert answered.startswith("Right. "), f"{source}\n{answered}"


@pytest.mark.parametrize("name", NAMED)
def test_wrong_answers_are_shown_where_they_go_wrong(name):
    assert len(ANSWERS[name]["wrong"]) >= 6
    for source, expected in ANSWERS[name]["wrong"]:
        answered = said(name, build(source))
        assert answered.startswith("Not yet: ") and expected in answered, f"{source}\n{answered}"
        assert "\n  for       " in answered
        assert ("\n  expected  " in answered) == ("\n  came      " in answered)


@pytest.mark.parametrize("name", [name for name in NAMED if name != "stream_answers"])
def test_every_mistake_that_is_known_is_told_by_its_own_sentence(name):
    solution = NAMED[name].__wrapped__
    names = [name for name, one in inspect.signature(solution).parameters.items() if one.default is one.empty]
    assert said(name, solution).startswith("Right. ")
    mistakes = exercise.texts(LESSON[name])[name]["mistakes"]
    assert len(mistakes) >= 8 and len({sentence for _, sentence in mistakes}) == len(mistakes)
    for formula, sentence in mistakes:

        def wrong(*case, formula=formula):
            wanted = exercise.plain(solution(*case))
            return exercise.work_out(formula, solution, {**dict(zip(names, case, strict=True)), "wanted": wanted})

        assert said(name, wrong).startswith(f"Not yet: {sentence}\n"), formula


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ("stream_answers", "star_words")])
def test_nobody_is_accused_of_what_he_did_not_do(name):
    """An answer that is right but for one input makes no known mistake, so none is named."""
    solution, calls = NAMED[name].__wrapped__, []

    def almost(*case):
        calls.append(case)
        return solution(*case) if len(calls) != 5 else -7

    answered = said(name, almost)
    assert not any(sentence in answered for _, sentence in exercise.texts(LESSON[name])[name]["mistakes"])


@pytest.mark.parametrize("name", NAMED)
def test_answers_that_never_end_or_never_come_do_not_hang_the_kernel(name, monkeypatch):
    def endless(*case):
        while True:
            try:  # noqa: SIM105
                sum(range(100))
            except:  # noqa: E722
                pass

    def generator(*case):
        while True:
            yield 1

    async def promised(*case):
        return 1

    def deep(*case):
        return deep(*case)

    monkeypatch.setattr(exercise, "SECONDS", 0.1)
    assert "still running after" in said(name, endless)
    monkeypatch.undo()
    for answer, expected in (
        (generator, "no end|what ends its loop|finds a negation in every"),
        (promised, "async def"),
        (deep, "RecursionError"),
        (lambda *case: exit(), "SystemExit"),
    ):
        answered = said(name, answer)
        assert answered.startswith("Not yet: ") and re.search(expected, answered), answered


def test_an_error_is_told_as_one_of_the_readers_function_with_its_line(tmp_path):
    path = tmp_path / "cell.py"
    path.write_text("def count(train, test):\n    held = set(test)\n    return helper(train, held)\n\n\n"
                    "def helper(train, held):\n    return sum(undefined in held for text in train)\n")  # fmt: skip
    names = {}
    exec(compile(path.read_text(), path, "exec"), names)
    answered = said("leaks", names["count"])
    assert "your function stopped with an error in line 7 of its cell (return sum(undefined in held" in answered
    assert "NameError: name 'undefined' is not defined" in answered and "cannot be read" not in answered
    assert "cannot be called as the exercise calls it: TypeError" in said("leaks", lambda train: 1)

    def stream(texts, predict, batch_size):
        while True:
            yield from predict([next(texts) for _ in range(batch_size)])

    assert "your function stopped with an error in line" in said("stream_answers", stream)


def test_what_a_function_does_instead_of_returning_is_said():
    printed = said("leaks", lambda train, test: print(2))
    assert "your function prints and returns nothing here" in printed
    kept = []
    assert "another answer to the same input" in said("leaks", lambda train, test: kept.append(1) or len(kept))
    assert "hand over the function itself" in said("leaks", 3)


def test_a_value_that_cannot_be_compared_is_not_taken_for_one_of_chance():
    assert "asked is a number, and your function returned" in said("mcnemar", lambda first, second: object())
