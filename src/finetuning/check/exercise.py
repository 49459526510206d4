"""What checks an exercise: it tries the answer on many inputs and shows the first for which it goes wrong."""

import contextlib
import copy
import functools
import inspect
import io
import itertools
import math
import random
import signal
import threading
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pandas import isna
from scipy import stats

from finetuning.check.progress import record
from finetuning.profiles import ASSETS

OPEN = "This gap is still open: write your answer in place of the dots and run the cell again."
DRAWN = 40  # inputs drawn for an exercise, beside its fixed ones
MOST = 1000  # values taken from an iterator
SECONDS = 10  # of computing, for all the inputs of an exercise together
HERE = Path(__file__).parent
_wrong: Counter[str] = Counter()  # exercise -> wrong answers in this kernel


class Mistake(BaseException):
    """What is wrong with an answer, as a sentence for its writer; no ``except Exception`` of theirs swallows it."""


@dataclass
class Outcome:
    """What came of one input: a value, or the error that stopped the function."""

    value: Any = None
    error: BaseException | None = None
    instead: str = "returned None"  # what the function did in place of returning something


class TimeLimit:
    """Raises Mistake in the reader's function when it has computed for SECONDS, on systems that have such a timer."""

    running = False  # whether the reader's function is being called

    def __enter__(self) -> "TimeLimit":
        self.timed = hasattr(signal, "SIGVTALRM") and threading.current_thread() is threading.main_thread()
        if self.timed:
            self.before = signal.signal(signal.SIGVTALRM, self.stop)
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 0.001)  # again and again, should an `except:` swallow it
        return self

    def stop(self, _: int, frame: Any) -> None:
        if self.running and frame and Path(frame.f_code.co_filename).parent != HERE:
            spent = f"your function was still running after {SECONDS} seconds"
            raise Mistake(f"{spent} and was stopped: what ends its loops?")

    def __exit__(self, *_: Any) -> None:
        if self.timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self.before)


@dataclass
class exercise:
    """Turns the solution of an exercise into the check of other people's answers to it.

    An answer gets the fixed inputs and then others that ``drawn`` makes from a seeded random.Random, and must return
    for each what the solution returns: real numbers up to ``tolerance``, arrays, tensors and iterators as lists.
    ``play`` calls the answer where a plain call is not enough.

    The rest stands in assets/exercises: ``fixed``, an input a line; ``because``, an expression that tells why the right
    value is right; ``mistakes``, each a wrong formula with a sentence, shown only when the formula gives for every
    input what the answer gave. All may use ``solution``, whose further arguments make mistakes, and its module; the
    last two also the names of the input, and ``wanted`` for the right value.

    A check prints and never raises, so that a headless run goes on. From the second wrong answer on it adds the next
    hint, each more specific than the one before, and after the last one points to the solution.
    """

    drawn: Callable[[random.Random], tuple]
    play: Callable = lambda function, *case: function(*case)
    tolerance: float = 1e-3

    def __call__(self, solution: Callable) -> Callable[[Any], None]:
        name, text = solution.__name__, texts(solution.__module__[-2:])[solution.__name__]

        @functools.wraps(solution)
        def check(answer: Any = None) -> None:
            if is_gap(answer):
                print(OPEN)
                return
            try:
                self.look(answer, solution, text)
            except Mistake as mistake:
                tell(name, str(mistake), text["hints"])
            else:
                _wrong.pop(name, None)
                record(solution.__module__[-2:], name)
                print(f"Right. {text['praise']}")

        return check

    def look(self, answer: Any, solution: Callable, text: dict) -> None:
        """Raise Mistake unless the answer does what the solution does."""
        if not callable(answer):
            raise Mistake("hand over the function itself, without brackets behind its name.")
        draw = random.Random(0)
        names = [name for name, one in inspect.signature(solution).parameters.items() if one.default is one.empty]
        inputs = [work_out(f"[{line}]", solution, {}) for line in text["fixed"].splitlines()]
        inputs += [self.drawn(draw) for _ in range(DRAWN)]
        cases = [dict(zip(names, values, strict=True)) for values in inputs]
        right = [plain(solution(**copy.deepcopy(case))) for case in cases]
        outcomes = self.try_all(answer, cases)
        wrong = [i for i, one in enumerate(outcomes) if one.error or not same(one.value, right[i], self.tolerance)]
        if not wrong:
            return

        def explains(formula: str) -> bool:
            def gives(case: dict, wanted: Any, outcome: Outcome) -> bool:
                try:
                    value = plain(work_out(formula, solution, {**case, "wanted": wanted}))
                except Exception:  # proves something only where the answer failed too
                    return bool(outcome.error)
                return not outcome.error and same(outcome.value, value, self.tolerance)

            return all(map(gives, cases, right, outcomes))

        case, wanted, outcome = cases[wrong[0]], right[wrong[0]], outcomes[wrong[0]]
        reason = next((sentence for formula, sentence in text.get("mistakes", []) if explains(formula)), "")
        if not reason:
            reason = tell_error(outcome.error) if outcome.error else misfit(outcome, wanted)
        if not reason and not same(self.try_all(answer, [case])[0].value, outcome.value, self.tolerance):
            reason = "your function gives another answer to the same input each time: by chance, or from what it keeps."
        lines = [reason or f"right for {len(cases) - len(wrong)} of {len(cases)} inputs, and wrong for this one:"]
        lines.append(show_input(case))
        if not outcome.error:
            why = f": {work_out(text['because'], solution, {**case, 'wanted': wanted})}" if "because" in text else ""
            lines += [f"  expected  {show(wanted)}{why}", f"  came      {show(outcome.value)}"]
        raise Mistake("\n".join(lines))

    def try_all(self, answer: Callable, cases: list[dict]) -> list[Outcome]:
        """What the reader's function makes of each input.

        Raises Mistake where it does not come to an end or breaks a rule that ``play`` watches over.
        """
        outcomes = []
        with TimeLimit() as limit:
            for case in cases:
                try:
                    outcomes.append(attempt(functools.partial(self.play, answer), case, limit))
                except Mistake as mistake:
                    raise Mistake(f"{mistake}\n{show_input(case)}") from None
        return outcomes


@functools.cache
def texts(lesson: str) -> dict[str, dict]:
    """What the checks of a lesson try and say: exercise -> fixed, praise, because, hints, mistakes."""
    return tomllib.loads((ASSETS / "exercises" / f"{lesson}.toml").read_text(encoding="utf-8"))


def work_out(expression: str, solution: Callable, names: dict) -> Any:
    """The value of an expression of assets/exercises."""
    known = {"np": np, "stats": stats, "solution": solution}
    return eval(expression, {**known, **solution.__globals__, **copy.deepcopy(names)})


def tell(name: str, mistake: str, hints: list[str]) -> None:
    """Print what is wrong, with the hint whose turn it is."""
    _wrong[name] += 1
    print(f"Not yet: {mistake}")
    if _wrong[name] > 1:
        print(f"Hint: {hints[min(_wrong[name] - 2, len(hints) - 1)]}")
    if _wrong[name] > len(hints) + 1:
        print("If the solution is folded below, read it now, then write your own.")


def is_gap(answer: Any) -> bool:
    """Whether nothing has been filled in: None, the dots, or a function without a body."""
    if answer is None or answer is ...:
        return True
    code = getattr(answer, "__code__", None)
    return code is not None and code.co_code == (lambda: None).__code__.co_code and not any(code.co_consts)


def attempt(function: Callable, case: dict, limit: TimeLimit) -> Outcome:
    """One call of the reader's function with a copy of the input."""
    given, printed = copy.deepcopy(list(case.values())), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of nothing shows as nan
            limit.running = True
            try:
                value = plain(function(*given))
            finally:
                limit.running = False
    except (Exception, SystemExit) as error:
        return Outcome(error=error)
    if value is None and printed.getvalue():
        return Outcome(instead="prints and returns nothing")
    if value is None and repr(given) != repr([*case.values()]):
        return Outcome(instead="changes what it was given and returns nothing")
    return Outcome(value)


def tell_error(error: BaseException) -> str:
    """An error as one of the reader's function, with the line it came from."""
    began = (error.__cause__ or error).__traceback__  # a StopIteration within a generator causes a RuntimeError
    frames = [one for one in traceback.extract_tb(began) if Path(one.filename).parent != HERE]
    message = f"{type(error).__name__}: {error}".rstrip(" .:")
    if not frames:
        return f"your function cannot be called as the exercise calls it: {message}."
    line = [one for one in frames if one.filename == frames[0].filename][-1]
    text = f" ({line.line})" if line.line else ""
    return f"your function stopped with an error in line {line.lineno} of its cell{text}: {message}."


def plain(value: Any) -> Any:
    """Arrays, tensors, tables, tuples and iterators as lists and numbers, at any depth.

    Raises Mistake for what has no end or must be awaited.
    """
    if inspect.isawaitable(value) or inspect.isasyncgen(value):
        getattr(value, "close", int)()
        raise Mistake("your function is written with `async def`, so that it only promises an answer; write `def`.")
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    for unroll in ("to_numpy", "tolist"):  # pandas; NumPy and PyTorch
        value = getattr(value, unroll)() if hasattr(value, unroll) else value
    if isinstance(value, (str, bytes, set, frozenset, bool, int)):
        return math.inf if isinstance(value, int) and abs(value) > 1e300 else value  # no float can hold such a number
    if isinstance(value, Iterable):
        parts = list(itertools.islice(value, MOST + 1))
        if len(parts) > MOST:
            raise Mistake(f"your answer goes on after {MOST:,} values, as if it had no end: what ends its loop?")
        return [plain(part) for part in parts]
    return float(value) if hasattr(value, "__float__") else value


def same(value: Any, wanted: Any, tolerance: float) -> bool:
    """Whether two plain values agree.

    Whole numbers must be equal, real ones up to the tolerance; where True or False is wanted, anything has a truth
    value; a missing value of pandas is None.
    """
    if isinstance(wanted, bool):
        return bool(value) == wanted
    if wanted is None:
        return isna(value) is True
    if isinstance(wanted, list):
        listed = isinstance(value, list) and len(value) == len(wanted)
        return listed and all(same(a, b, tolerance) for a, b in zip(value, wanted, strict=True))
    if isinstance(wanted, (int, float)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        near = 1e-6 if isinstance(wanted, int) else tolerance
        return math.isclose(value, wanted, rel_tol=near, abs_tol=near) or (math.isnan(value) and math.isnan(wanted))
    return isinstance(value, type(wanted)) and value == wanted


def misfit(outcome: Outcome, wanted: Any) -> str:
    """What is wrong with the kind of a value, whatever the exercise; empty when nothing is."""
    value, asked, came = outcome.value, kind(wanted), kind(outcome.value)
    if isinstance(wanted, bool):
        return ""
    if value is None:
        return f"your function {outcome.instead} here; does every way through it end with `return`?"
    if asked != came:
        return f"asked is {asked}, and your function returned {came}."
    if isinstance(wanted, list) and (len(value), {*map(kind, value)}) != (len(wanted), {*map(kind, wanted)}):
        asked, came = (" and ".join(sorted({*map(kind, some)})) or "nothing" for some in (wanted, value))
        return f"asked is a list of {len(wanted)} ({asked}), and your function returned one of {len(value)} ({came})."
    return ""


def kind(value: Any) -> str:
    """What sort of thing a plain value is, in words."""
    named = {int: "a number", float: "a number", str: "a text", list: "a list", set: "a set, which has no order"}
    named |= {bool: "True or False", type(None): "None"}
    return named.get(type(value), f"a {type(value).__name__}")


def show(value: Any) -> str:
    """A value for the eye: arrays as lists, real numbers with six digits, nothing longer than three lines."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(part) for key, part in value.items()}
        if isinstance(value, list):
            return [rounded(part) for part in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    text = repr(rounded(plain(value)))
    return text if len(text) <= 300 else text[:300] + " …"


def show_input(case: dict) -> str:
    """The input of a call, name by name."""
    return "  for       " + ", ".join(f"{name} = {show(value)}" for name, value in case.items())
