"""Lesson 01: stars become words, leaks, a length limit, padding."""

import math
from typing import Any

from finetuning.check.feedback import Mistake, exercise, name_mistake, near, number, result
from finetuning.labels import LABEL_WORDS


@exercise(
    "The rule has three parts: clearly bad, clearly good, and what is left.",
    "Up to 4 stars the word is 'negative', from 7 stars on it is 'positive'.",
    "One line can do it: a list of `'positive' if … else 'negative' if … else None` for each of the stars.",
)
def star_words(answer: Any) -> str:
    """``answer(stars)``: the label word of each number of stars, None for what lies in the middle."""
    words = dict(zip([1, 9, 5, 10, 3, 6], result(answer, [1, 9, 5, 10, 3, 6]), strict=False))
    if len(words) != 6:
        raise Mistake("return a list with one entry per review, None for a review that is left out.")
    if all(isinstance(words[stars], int) for stars in (1, 9)):
        raise Mistake("these are numbers; a text-to-text model answers in text, so it needs the label words.")
    if (words[1], words[9]) == LABEL_WORDS[::-1]:
        raise Mistake("the two words are swapped: nine stars are praise.")
    if (words[1], words[9]) != LABEL_WORDS:
        raise Mistake(
            f"1 and 9 stars became {words[1]!r} and {words[9]!r}; the model knows the words {LABEL_WORDS}, spelt so."
        )
    if words[5] is not None or words[6] is not None:
        raise Mistake("5 and 6 stars are neither praise nor blame: a label there would teach the model a coin toss.")
    if result(answer, [4, 7]) != list(LABEL_WORDS):
        raise Mistake("look at the borders: 4 stars are still negative and 7 already positive.")
    return "Labels that nobody could give with confidence are better left out than guessed."


@exercise(
    "Case, commas and full stops must not hide a copy: compare `fingerprint(text)`.",
    "Put the fingerprints of all test reviews into a set, then go through the training reviews.",
    "Count the training reviews, not the different texts: `sum(… in held for text in train)`.",
)
def leaks(answer: Any) -> str:
    """``answer(train, test)``: how many training reviews also stand in test."""
    copies = number(result(answer, ["A joy.", "a JOY!", "Dull.", "A fine film"], ["A joy", "Great"]))
    if copies == 0:
        raise Mistake("a copy in other letters got away; two reviews are the same when their words are.")
    if copies == 1:
        raise Mistake("'A joy.' and 'a JOY!' both stand in train and both must go: count reviews, not different texts.")
    if number(result(answer, ["A joy to watch."], ["A joy"])):
        raise Mistake("a review that only begins like a test review is no copy of it: compare whole texts.")
    if number(result(answer, ["Dull.", "Dull!"], ["Great"])):
        raise Mistake("a repeat inside train is no leak: nobody is marked on training reviews.")
    if number(result(answer, ["Great"], ["great", "Great."])) != 1:
        raise Mistake("one training review was counted more than once because test holds its text twice.")
    if copies != 2:
        raise Mistake(f"two of four training reviews stood in test, and you counted {copies:g}.")
    return "Every one of these would have been a question whose answer the model had read before."


@exercise(
    "A review is cut when it is longer than the limit; one that is just as long is not.",
    "Only the lengths that occur need trying, from the shortest up.",
    "For each limit in `sorted(set(lengths))` compute the share of reviews above it; return the first that is low enough.",
)
def length_limit(answer: Any) -> str:
    """``answer(lengths, share)``: the smallest limit that cuts no more than this share of the reviews."""
    lengths = list(range(100, 0, -10))
    limit = number(result(answer, lengths, 0.25))
    if limit in (20, 30) or math.isclose(limit, 32.5):
        raise Mistake("this limit keeps a quarter of the reviews whole and cuts the rest; it is the other way round.")
    if limit != int(limit):
        raise Mistake(f"{limit:g} is no number of tokens: a quantile interpolates between two lengths, a limit cannot.")
    if limit == 100:
        raise Mistake("nothing is cut at 100 tokens, but a smaller limit would have kept the promise too.")
    if limit < 80:
        raise Mistake(
            f"at {limit:g} tokens {sum(x > limit for x in lengths)} of 10 reviews are cut; a quarter was allowed."
        )
    if limit != 80 or number(result(answer, [5, 9, 5, 5], 0.25)) != 5 or number(result(answer, lengths, 0)) != 100:
        raise Mistake(
            "there is a smaller limit that cuts no more than allowed, or one of yours cuts too many; mind equal lengths."
        )
    return "You chose the cost first and the limit after it, which is the right order."


@exercise(
    "Walk through the reviews in steps of the batch size; each step is one batch.",
    "A batch computes (its number of reviews) times (its longest review) tokens.",
    "waste = 1 - real / computed, where computed is summed over the batches and real over the reviews.",
)
def padding_waste(answer: Any) -> str:
    """``answer(lengths, batch_size)``: the share of the computed tokens that is padding, batches taken in order."""
    waste = number(result(answer, [2, 4, 6, 6, 10], 2))
    named = (
        (22 / 50, "you padded every review to the longest of all; each batch is only as long as its own longest."),
        (2 / 28, "that is padding against real tokens; asked is its share of all that is computed, padding included."),
        (2 / 20, "the last batch is smaller than the others, but it is computed too."),
        (28 / 30, "that is the share of real tokens; the waste is the rest."),
        (2, "that is the number of padding tokens; asked is their share of all computed tokens."),
        (200 / 30, "asked is a share between 0 and 1, not a percentage."),
    )
    name_mistake(waste, named)
    if not near(waste, 2 / 30) or not near(number(result(answer, [7, 1, 1], 3)), 12 / 21):
        raise Mistake(
            f"for lengths [2, 4, 6, 6, 10] in batches of 2 the model computes 8 + 12 + 10 tokens, 28 of them real; you got {waste:g}."
        )
    return "Sort the lengths first and try again: that is what grouping by length gains."
