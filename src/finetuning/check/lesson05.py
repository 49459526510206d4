"""Lesson 05: a paired test, a slice, a temperature, the calibration error."""

from typing import Any

from finetuning.check.feedback import Mistake, exercise, name_mistake, near, number, result


@exercise(
    "Only the reviews on which exactly one of the two is right can tell them apart; count both kinds.",
    "If the two were equally good, each such review would be a coin toss: a binomial distribution with a half.",
    "`scipy.stats.binomtest(b, b + c).pvalue`, where b and c are the two counts; without any such review p is 1.",
)
def mcnemar(answer: Any) -> str:
    """``answer(first, second)``: the exact two-sided p-value of McNemar's test. Both: lists of right (1) and wrong (0) answers."""
    first, second = [1] * 8 + [0] * 2 + [1] * 10 + [0] * 3, [0] * 8 + [1] * 2 + [1] * 10 + [0] * 3
    p = number(result(answer, first, second))
    named = (
        (0.0546875, "that is one tail; the second may be the better one as well, so both tails count."),
        (
            0.0577795,
            "that is the chi-square approximation; with so few differing reviews it is too sure of itself. Use the binomial.",
        ),
        (0.1138463, "that is the chi-square approximation with a correction; the exact test is the binomial."),
        (0.0214844, "the outcome 8 to 2 itself is missing: count what is as extreme, not only what is more so."),
        (
            0.2100244,
            "you tossed a coin for all 23 reviews; those on which both agree say nothing about which is better.",
        ),
    )
    name_mistake(p, named)
    if not 0 <= p <= 1:
        raise Mistake(f"a p-value lies between 0 and 1, and you got {p:g}.")
    if near(p, 0.109375, 1e-4):
        if near(number(result(answer, [1, 0, 1], [1, 0, 1])), 1):
            return "Reviews on which both agree say nothing about which is better, however many there are."
        raise Mistake("two models that agree on every review cannot be told apart: p is 1.")
    raise Mistake(
        f"of 23 reviews the first alone is right on 8, the second alone on 2; the other 13 do not count. You got {p:.4f}."
    )


@exercise(
    "Look at words, not at letters: 'nothing', 'notice' and 'another' hold the letters of 'not'.",
    'Split the lower-cased text into words first: `re.findall(r"[\\w\']+", text.lower())`.',
    "A word negates when it is 'not', 'no', 'never', 'without', or ends in \"n't\".",
)
def negation_slice(answer: Any) -> str:
    """``answer(text)``: whether a review belongs to the slice of those that negate something."""
    cases = {
        "It was not good.": "it misses a plain 'not'.",
        "NOT what I paid for.": "it misses capital letters.",
        "I didn't laugh once.": 'it misses short forms such as "didn\'t".',
        "I never looked at the clock.": "it misses 'never'.",
        "A film without a heart": "it misses 'without'.",
        "No plot at all.": "it misses 'no'.",
    }
    wrong = {
        "Another notable film, a knot well tied.": "it finds 'not' inside other words, such as 'another' and 'notable'.",
        "A warm and funny film.": "it finds a negation where there is none.",
        "I now know the piano score by heart.": "it finds 'no' inside other words, such as 'know' and 'piano'.",
    }
    for text, sentence in cases.items():
        if not result(answer, text):
            raise Mistake(f"{sentence} ({text})")
    for text, sentence in wrong.items():
        if result(answer, text):
            raise Mistake(f"{sentence} ({text})")
    return "A slice is a question put as a function: is the model as good where something is negated?"


@exercise(
    "A temperature works on logits; the logarithm of the probabilities will do as logits.",
    "Divide the logarithms by the temperature, then make probabilities of them again by a softmax.",
    "softmax(log(p) / temperature), for each row over its two columns.",
)
def with_temperature(answer: Any) -> str:
    """``answer(scores, temperature)``: probabilities of shape (reviews, 2) made less sure (over 1) or surer (under 1)."""
    import numpy as np

    scores = np.array([[0.2, 0.8], [0.5, 0.5]])
    given = result(answer, scores, 2.0)
    if (
        not isinstance(given, list)
        or len(given) != 2
        or not all(isinstance(row, list) and len(row) == 2 for row in given)
    ):
        raise Mistake("return two probabilities for each review, in the shape that came in.")
    if near(given[0], [1 / 17, 16 / 17], 1e-4):
        raise Mistake("a temperature of 2 made the model surer: you multiply by it; divide.")
    if near(given[0], [0.1, 0.4], 1e-4):
        raise Mistake("you divide the probabilities, which then do not sum to one; divide their logarithms.")
    if near(given[0], [0.2, 0.8], 1e-4):
        raise Mistake(
            "nothing changed: dividing probabilities and normalising again undoes itself. Work on the logarithms."
        )
    if near(given[0], [0.4255574, 0.5744426], 1e-4):
        raise Mistake("you took the probabilities for logits; take their logarithm first.")
    if not near(sum(given[0]), 1, 1e-4):
        raise Mistake("the two probabilities of a review must sum to one.")
    if not near(given, [[1 / 3, 2 / 3], [0.5, 0.5]], 1e-4) or not near(
        result(answer, scores, 1.0), scores.tolist(), 1e-4
    ):
        raise Mistake(
            f"0.2 and 0.8 at temperature 2 become 1/3 and 2/3, and you got {given[0]}; at temperature 1 nothing changes."
        )
    return "The verdicts stay as they are, only the confidence moves: temperature cannot change the accuracy."


@exercise(
    "For each bin: how sure was the model there on average, and how often was it right?",
    "The gap of a bin is the absolute difference of the two; an empty bin has none.",
    "Weight each gap by the share of all reviews that lie in its bin, and add up.",
)
def calibration_error(answer: Any) -> str:
    """``answer(confidence, right, edges)``: the expected calibration error; a bin holds confidences above one edge and up to the next."""
    import numpy as np

    confidence, right = np.array([0.6, 0.6, 0.6, 0.6, 0.9, 0.9]), np.array([1, 1, 1, 0, 0, 1])
    error = number(result(answer, confidence, right, [0.5, 0.75, 1.0]))
    signed = "the gaps cancel: in one bin the model is too sure, in the other not sure enough. Take absolute values."
    named = (
        (0.275, "you average over the bins; a bin with more reviews must weigh more."),
        (0.55, "you add the gaps up without weighting them by the reviews in each bin."),
        (1 / 30, signed),
        (-1 / 30, signed),
        (2.8 / 6, "you compare review by review; one review is right or wrong, only a bin has a share of right ones."),
        (70 / 3, "asked is a number between 0 and 1, not a percentage."),
    )
    name_mistake(error, named)
    if not near(error, 7 / 30, 1e-4):
        raise Mistake(
            f"four reviews at 0.6, three right, and two at 0.9, one right: 4/6 of 0.15 plus 2/6 of 0.40; you got {error:g}."
        )
    if not near(number(result(answer, confidence, right, [0.0, 0.5, 0.75, 1.0])), 7 / 30, 1e-4):
        raise Mistake("with an empty bin it comes out differently, or as no number; leave empty bins out.")
    if not near(number(result(answer, np.array([0.75, 1.0]), np.array([1, 1]), [0.5, 0.75, 1.0])), 0.125, 1e-4):
        raise Mistake("a confidence on an edge belongs to the bin below it; 1.0 is in the last bin.")
    return "A small error says that of the reviews called 90 % sure about nine in ten are right; it says nothing about accuracy."
