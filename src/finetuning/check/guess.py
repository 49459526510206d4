"""A guess beside its outcome."""

import math
import re
from typing import Any

# measure -> how far a guess may lie from the outcome and still be called good
GOOD = {"share": 2, "points": 1, "factor": 1.1}  # the first two in points, that is hundredths


def compare(guess: Any, outcome: Any, form: str = "{}", measure: str = "factor") -> None:
    """Show a guess beside the outcome; ``form`` writes both, as in ``"{:.1%} of the reviews"``.

    ``measure`` says in what the distance is given: "share" (of accuracies and other shares, given in points), "points"
    (of differences that are in points already), "factor" (of times, counts and ratios). Used after the prediction
    prompts of the lessons. A guess that cannot be compared is answered, never an error.
    """
    shown, number = form.format(outcome), _number(guess, measure)
    if guess is None or guess is ...:
        print(f"Outcome: {shown}. (No guess stored.)")
    elif isinstance(outcome, str):
        same = len({re.sub(r"[^a-z0-9]", "", str(one).lower()) for one in (guess, outcome)}) == 1
        print(f"Your guess: {guess}. Outcome: {shown}. {'As you said.' if same else 'Not what you expected: why?'}")
    elif number is None:
        print(f"Outcome: {shown}. (Your guess {guess!r} is no number, so it cannot be compared.)")
    elif measure == "share" and not 0 <= number <= 1:
        print(f"Your guess: {number:g}. Outcome: {shown}. A share lies between 0 and 1.")
    else:
        whole = number.is_integer() and not isinstance(outcome, float)
        guessed = form.format(int(number) if whole else number)
        print(f"Your guess: {guessed}. Outcome: {shown}. {_distance(number, outcome, measure)}")


def _number(guess: Any, measure: str) -> float | None:
    """The one number in a guess such as 0.78, "78 %", "0,78" or "1,000 steps"; None where there is not just one."""
    text = re.sub(r"(?<!\b0),(?=\d{3}\b)", "", str(guess)).replace(",", ".")
    found = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", text)
    number = float(found[0]) if len(found) == 1 else math.nan
    number /= 100 if measure == "share" and ("%" in text or 1 < number <= 100) else 1
    return number if math.isfinite(number) else None


def _distance(guess: float, outcome: float, measure: str) -> str:
    side = "high" if guess > outcome else "low"
    if measure == "factor":
        if guess == outcome or (outcome > 0 and 1 / GOOD[measure] <= guess / outcome <= GOOD[measure]):
            return "Well guessed."
        far = f", by a factor of {max(guess / outcome, outcome / guess):,.1f}" if min(guess, outcome) > 0 else ""
    else:
        points = round(abs(guess - outcome) * (100 if measure == "share" else 1), 6)
        if points <= GOOD[measure]:
            return "Well guessed."
        far = f", by {points:.1f} points"
    return f"You guessed too {side}{far}: what did you not think of?"
