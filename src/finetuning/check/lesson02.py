"""Lesson 02: the floor, a bag of words, the choice of a prompt, an interval."""

from typing import Any

from finetuning.check.feedback import Mistake, exercise, name_mistake, near, number, result


@exercise(
    "Two steps: which label is more frequent in train, and how often is it right in test?",
    "The test labels may only be used to mark the answer, not to choose it.",
    "most = 1 if the mean of the training labels is above a half, else 0; then the share of test labels equal to it.",
)
def majority(answer: Any) -> str:
    """``answer(train_labels, test_labels)``.

    The accuracy on test of always answering what is most frequent in train.
    """
    accuracy = number(result(answer, [1, 1, 1, 0], [0, 0, 0, 0, 1]))
    named = (
        (0.8, "the answer was chosen by the test labels; a baseline may look at those of train only."),
        (0.75, "that is how often the answer is right in train; it is measured on test."),
        (1, "that is the label itself; asked is how often it is right."),
        (20, "asked is a share between 0 and 1, not a percentage."),
    )
    name_mistake(accuracy, named)
    other = number(result(answer, [0, 0, 1], [0, 1, 1, 1]))
    if near(other, 0.75):
        raise Mistake("you always answer 1, but in another train the 0 may be more frequent.")
    if not near(accuracy, 0.2) or not near(other, 0.25):
        raise Mistake(
            f"train [1, 1, 1, 0] makes the answer 1, which is right for one of the test labels [0, 0, 0, 0, 1]; you got {accuracy:g}."
        )
    return "On a test set that is unlike train the floor can lie far below a half."


@exercise(
    "A word's pull is its weight times the number of times it occurs.",
    "Words without a weight pull nothing: `weights.get(word, 0)`.",
    "Compare the sizes of the pulls, whatever their sign: `max(words, key=lambda word: abs(…))`.",
)
def decisive_word(answer: Any) -> str:
    """``answer(text, weights)``: the word of a text that moves a bag-of-words verdict most."""
    weights = {"good": 1.5, "awful": -3.0, "slow": -2.0, "fine": 1.0, "superb": 4.0}
    word = result(answer, "slow slow good awful", weights)
    if not isinstance(word, str):
        raise Mistake(f"asked is the word itself, and your function returned {word!r}.")
    named = {
        "awful": "'awful' has the largest weight, but 'slow' stands there twice, and each time counts.",
        "good": "you took the largest pull towards positive; a pull towards negative decides as well.",
        "superb": "'superb' does not occur in that text: only words that do can pull.",
    }
    if word in named:
        raise Mistake(named[word])
    if result(answer, "the plot is fine the end the", weights) != "fine":
        raise Mistake("a word without a weight pulls nothing, however often it occurs.")
    if word != "slow" or result(answer, "fine fine good", weights) != "fine":
        raise Mistake("for 'slow slow good awful' the pulls are slow -4, awful -3, good 1.5.")
    return "This is how a linear model explains itself, exactly; for T5 lesson 05 can only probe."


@exercise(
    "Which of the two dicts may help to choose? Which one may only be reported?",
    "The prompt is the key with the largest value in validation: `max(validation, key=validation.get)`.",
    "Return that prompt and its accuracy on test.",
)
def choose_prompt(answer: Any) -> str:
    """``answer(validation, test)``: the prompt to use and the accuracy to report.

    Both arguments: dict of prompt -> accuracy.
    """
    chosen = result(answer, {"a": 0.70, "b": 0.74, "c": 0.72}, {"a": 0.75, "b": 0.71, "c": 0.73})
    if not isinstance(chosen, list) or len(chosen) != 2:
        raise Mistake("return two things: the prompt, and the accuracy you would report for it.")
    prompt, accuracy = chosen
    if prompt == "a":
        raise Mistake(
            "you chose the prompt that is best on test: reported, that number would be too good, for chance helped to pick it."
        )
    if near(accuracy, 0.74):
        raise Mistake(
            "the prompt is well chosen, but its validation accuracy helped to choose it and is too good; report another number."
        )
    if prompt != "b" or not near(accuracy, 0.71):
        raise Mistake(f"on validation b is best; you returned {prompt!r} with {accuracy!r}.")
    return "It may hurt to report less than the best number on the table, but it is the honest one."


@exercise(
    "The accuracy p is right / n; it stands in the middle of the interval.",
    "The standard error of a share is the square root of p (1 - p) / n.",
    "low and high are p minus and plus 1.96 standard errors.",
)
def interval(answer: Any) -> str:
    """``answer(right, n)``: the 95 % interval (low, high) of an accuracy, by the normal approximation."""
    given = result(answer, 80, 100)
    if not isinstance(given, list) or len(given) != 2:
        raise Mistake("return two numbers, the lower and the upper end.")
    low, high = (number(end) for end in given)
    if low > 1 or high > 2:
        raise Mistake("these are counts or percentages; the interval of an accuracy lies between 0 and 1.")
    half = (high - low) / 2
    named = (
        (0.04, "that is one standard error on either side: it holds two intervals in three, not 95 of 100."),
        (
            1.96 * 0.0016,
            "the variance of the accuracy is p (1 - p) / n; its standard error is the square root of that.",
        ),
        (1.96 * 0.4, "divide by n: the more reviews, the narrower the interval."),
        (0.0784 / 2, "that is half as wide as it should be: 1.96 standard errors go on either side."),
    )
    name_mistake(half, named)
    if not near(low, 0.7216, 2e-3) or not near(high, 0.8784, 2e-3):
        raise Mistake(
            f"80 of 100 give a standard error of 0.04, so the interval is 0.80 minus and plus 1.96 of them; you got {low:.3f} to {high:.3f}."
        )
    if not near(result(answer, 300, 400), [0.7076, 0.7924], 2e-3):
        raise Mistake("right for 80 of 100, but not for 300 of 400: does a number stand in it that should be p or n?")
    return "Four times the reviews halve the interval: certainty is bought at a rising price."
