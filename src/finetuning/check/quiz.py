"""The quizzes of the lessons: their questions, and the comments on an answer."""

import re
import tomllib
from collections.abc import Iterable
from typing import Any

from finetuning.check.progress import record
from finetuning.errors import CourseError
from finetuning.profiles import ASSETS


def questions(lesson: str) -> list[dict]:
    """The quiz of a lesson: dicts with ``ask``, ``right`` (a letter) and ``a``, ``b`` … -> [choice, why or why not].

    Raises CourseError for a lesson without a quiz.
    """
    path = ASSETS / "quiz" / f"{lesson}.toml"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
        raise CourseError(f"There is no quiz for lesson {lesson!r}; choose one of {names}.")
    return tomllib.loads(path.read_text(encoding="utf-8"))["question"]


def letters(question: dict) -> list[str]:
    """The letters of a question's choices."""
    return [key for key in question if len(key) == 1]


def quiz(lesson: str, answers: Any = "") -> None:
    """Answer a quiz: one letter per question, as in ``"b c a"``, ``"1b 2c 3a"`` or a list.

    Prints what each chosen letter gets right or wrong. Where the answer is right, the other choices are explained too.
    """
    asked, given = questions(lesson), chosen(answers)
    if not given:
        shown = " ".join("abcabc"[: len(asked)])
        print(f'Write one letter for each of the {len(asked)} questions between the quotes, as in "{shown}".')
        return
    if len(given) != len(asked):
        print(f"There are {len(asked)} questions; letters given: {len(given)}. Give one for each question.")
        return
    right = 0
    for i, (question, letter) in enumerate(zip(asked, given, strict=True), 1):
        if letter not in letters(question):
            print(f"{i} {letter}: there is no such choice; choose one of {', '.join(letters(question))}.")
        elif letter != question["right"]:
            print(f"{i} {letter}: not so. {question[letter][1]}")
        else:
            right += 1
            print(f"{i} {letter}: right. {question[letter][1]}")
            for other in letters(question):
                if other != letter:
                    print(f"    not {other}: {question[other][1]}")
    if right == len(asked):
        record(lesson, "quiz")
    again = "" if right == len(asked) else " Change the others and run the cell again."
    print(f"{right} of {len(asked)} right.{again}")


def chosen(answers: Any) -> list[str]:
    """The letters of an answer in the order of the questions: they may be numbered, in a list or a dict, or run on."""
    answers = answers.items() if isinstance(answers, dict) else answers
    parts = answers if isinstance(answers, Iterable) else [answers or ""]
    text = " ".join(map(str, parts)).lower()
    numbered, found = re.findall(r"(\d+)\W*([a-z])", text), re.findall(r"[a-z]", text)
    if len(numbered) == len(found):
        found = [letter for _, letter in sorted(numbered, key=lambda pair: int(pair[0]))]
    return found
