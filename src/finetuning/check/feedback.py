"""How the lessons answer you: exercises with hints, guesses beside outcomes, quizzes."""

import copy
import functools
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from finetuning.errors import CourseError
from finetuning.profiles import ASSETS

OPEN = "This gap is still open: write your answer in place of the dots and run the cell again."
_wrong: Counter[str] = Counter()  # exercise -> wrong answers in this kernel


class Mistake(Exception):
    """What is wrong with an answer, as a sentence for its writer."""


def exercise(*hints: str) -> Callable:
    """Turn a function that looks for mistakes into the check of an exercise.

    The function gets the answer, raises ``Mistake`` or returns what to say about a right one. The check prints; it
    never raises, so that a headless run goes on. From the second wrong answer on it adds the next of ``hints``, each
    more specific than the one before, and after the last one points to the solution.
    """

    def decorate(look: Callable[[Any], str]) -> Callable[..., None]:
        @functools.wraps(look)
        def check(answer: Any = None) -> None:
            name = look.__name__
            if is_gap(answer):
                print(OPEN)
                return
            try:
                praise = look(answer)
            except Exception as error:
                mistake = str(error)
                if not isinstance(error, Mistake):  # an answer of a kind that nobody thought of
                    mistake = f"what your answer returned cannot be read ({type(error).__name__}: {error})."
                _wrong[name] += 1
                print(f"Not yet: {mistake}")
                if _wrong[name] > 1:
                    print(f"Hint: {hints[min(_wrong[name] - 2, len(hints) - 1)]}")
                if _wrong[name] > len(hints) + 1:
                    print("If the solution is folded below, read it now, then write your own.")
            else:
                _wrong.pop(name, None)
                print(f"Right. {praise}")

        vars(check)["hints"] = hints  # for the tests
        return check

    return decorate


def is_gap(answer: Any) -> bool:
    """Whether nothing has been filled in.

    None, the dots, a function without a body, or a container that still holds dots.
    """
    if answer is None or answer is ...:
        return True
    if isinstance(answer, (list, tuple, dict)):
        return any(value is None or value is ... for value in (answer.values() if isinstance(answer, dict) else answer))
    code = getattr(answer, "__code__", None)
    return code is not None and code.co_code == (lambda: None).__code__.co_code and not any(code.co_consts)


def result(function: Any, *arguments: Any, may_be_none: bool = False) -> Any:
    """What the reader's function returns for a case, as plain values.

    Raises Mistake where it fails or returns nothing.
    """
    if not callable(function):
        raise Mistake("hand over the function itself, without brackets behind its name.")
    shown = ", ".join(repr(argument) for argument in arguments)
    shown = shown if len(shown) < 200 else shown[:200] + " ..."
    try:
        value = function(*copy.deepcopy(arguments))
    except Exception as error:
        raise Mistake(f"your function stopped with {type(error).__name__}: {error}, for ({shown}).") from error
    if value is None and not may_be_none:
        raise Mistake(f"your function returned nothing for ({shown}); does every way through it end with return?")
    return plain(value)


def plain(value: Any) -> Any:
    """Tensors, arrays and tuples as lists and numbers, at any depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def number(value: Any) -> float:
    """``value`` as a float; Mistake when it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Mistake(f"asked is a number, and your function returned {value!r}.")
    return float(value)


def near(value: Any, wanted: Any, tolerance: float = 1e-6) -> bool:
    """Whether two numbers, or two lists of numbers, agree up to rounding."""
    if isinstance(wanted, (list, tuple)):
        same = isinstance(value, list) and len(value) == len(wanted)
        return same and all(near(a, b, tolerance) for a, b in zip(value, wanted, strict=True))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isclose(value, wanted, rel_tol=tolerance, abs_tol=tolerance)


def name_mistake(value: Any, named: Iterable[tuple[Any, str]], tolerance: float = 1e-4) -> None:
    """Raise the Mistake whose tell-tale value this is. ``named``: pairs of a value and a sentence."""
    for tell_tale, sentence in named:
        if near(value, tell_tale, tolerance):
            raise Mistake(sentence)


def compare(guess: Any, outcome: Any, form: str = "{}") -> None:
    """Show a guess beside the outcome; ``form`` writes both, as in ``"{:.1%} of the reviews"``.

    Without a guess, the outcome alone.

    Used after the prediction prompts of lessons 01 to 05. A guess that cannot be compared is answered, never an error.
    """
    came = form.format(outcome)
    if guess is None or guess is ...:
        print(f"Outcome: {came}. (No guess stored.)")
    elif isinstance(outcome, str):
        same = str(guess).strip().lower() == outcome.lower()
        print(f"Your guess: {guess}. Outcome: {came}. {'As you said.' if same else 'Not what you expected: why?'}")
    elif isinstance(guess, bool) or not isinstance(guess, (int, float)) or not math.isfinite(guess):
        print(f"Outcome: {came}. (Your guess {guess!r} is no number, so it cannot be compared.)")
    else:
        print(f"Your guess: {form.format(guess)}. Outcome: {came}. {_distance(guess, outcome)}")


def _distance(guess: float, outcome: float) -> str:
    if math.isclose(guess, outcome, rel_tol=0.1):
        return "Well guessed."
    if 0 < abs(outcome) <= 1 < abs(guess):
        return "A share lies between 0 and 1."
    return f"You guessed too {'high' if guess > outcome else 'low'}: what did you not think of?"


def questions(lesson: str) -> list[dict]:
    """The quiz of a lesson.

    A list of dicts with ``ask``, ``right`` (a letter) and ``a``, ``b`` … -> [choice, why or why not].

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


def quiz_markdown(lesson: str) -> str:
    """A quiz as the lesson shows it.

    The questions with their choices, and below them, folded, a word on every choice.
    """
    asked, explained = [], []
    for i, question in enumerate(questions(lesson), 1):
        choices = [f"   - **{letter}** {question[letter][0]}" for letter in letters(question)]
        asked.append("\n".join([f"{i}. {question['ask']}", *choices]))
        words = [f"{letter}: {question[letter][1]}" for letter in letters(question)]
        explained.append(f"{i}. **{question['right']}.** " + " ".join(words))
    folded = (
        "<details><summary>The answers, each choice explained</summary>\n\n" + "\n".join(explained) + "\n\n</details>"
    )
    return "\n".join(asked) + "\n\n" + folded


def quiz(lesson: str, answers: str = "") -> None:
    """Answer a quiz: one letter per question, as in ``"b c a"``. Prints what each chosen letter gets right or wrong.

    Where the answer is right, the other choices are explained too.
    """
    asked = questions(lesson)
    given = str(answers).lower().replace(",", " ").split()
    given = list(given[0]) if len(given) == 1 and len(given[0]) == len(asked) else given
    if not given:
        print(
            f'Write one letter for each of the {len(asked)} questions between the quotes, as in "{" ".join("abcabc"[: len(asked)])}".'
        )
        return
    if len(given) != len(asked):
        print(
            f"There are {len(asked)} questions, and {len(given)} answers were given: one letter each, with a space between."
        )
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
    print(
        f"{right} of {len(asked)} right."
        + ("" if right == len(asked) else " Change the others and run the cell again.")
    )
