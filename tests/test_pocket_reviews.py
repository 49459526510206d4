"""Pocket Reviews keeps what its card promises."""

from collections import Counter, defaultdict
from statistics import median

import pytest

from authoring.blocks import fill_block
from authoring.pocket import corpus
from finetuning.profiles import POCKET_REVIEWS

FIELDS = {"id", "film", "genre", "text", "label", "rating", "traits", "split"}


@pytest.fixture(scope="module")
def reviews():
    return corpus.read_reviews()


@pytest.fixture(scope="module")
def texts(reviews):
    return [r["text"] for r in reviews]


def most_texts_with_a_run(texts):
    """How many texts hold the run of eight words that stands in most of them."""
    return max(Counter(run for text in texts for run in corpus.runs_of_words(text, 8)).values())


def test_sizes_fields_and_balance(reviews):
    assert Counter(r["split"] for r in reviews) == {"train": 1600, "validation": 400, "test": 1500}
    assert len({r["id"] for r in reviews}) == 3500
    for split in corpus.SPLITS:
        labels = [r["label"] for r in reviews if r["split"] == split]
        assert sum(labels) * 2 == len(labels)
    for r in reviews:
        assert set(r) == FIELDS
        assert r["rating"] in ((1, 2, 3, 4) if r["label"] == 0 else (7, 8, 9, 10)), r["id"]
        assert r["traits"] and set(r["traits"]) <= set(corpus.TRAITS), r["id"]
        assert "plain" not in r["traits"] or r["traits"] == ["plain"], r["id"]
        assert 20 <= len(r["text"].split()) <= 180, r["id"]
    assert {r["rating"] for r in reviews} == {1, 2, 3, 4, 7, 8, 9, 10}
    assert 60 <= median(len(r["text"].split()) for r in reviews) <= 80


def test_traits_are_frequent_and_spread(reviews):
    assert sum("plain" not in r["traits"] for r in reviews) >= 0.55 * len(reviews)
    for trait in corpus.TRAITS:
        mine = [r for r in reviews if trait in r["traits"]]
        assert len(mine) >= 120, trait
        assert 0.4 <= sum(r["label"] for r in mine) / len(mine) <= 0.6, trait
        for split, share in (("train", 1600 / 3500), ("validation", 400 / 3500), ("test", 1500 / 3500)):
            assert abs(sum(r["split"] == split for r in mine) / len(mine) - share) <= 0.05, (trait, split)


def test_the_test_split_is_new(reviews):
    """Its reviews were written when the others had all been used to choose models by."""
    first = {r["id"] for r in corpus.first_edition(reviews)}
    assert len(first) == 2000
    assert {r["id"] in first for r in reviews if r["split"] == "test"} == {False}
    assert {r["id"] in first for r in reviews if r["split"] != "test"} == {True}


def test_no_film_stands_in_two_splits(reviews):
    splits = defaultdict(set)
    for r in reviews:
        splits[" ".join(corpus.words(r["film"])) or r["film"]].add(r["split"])
    assert [film for film, where in splits.items() if len(where) > 1] == []


def test_no_two_reviews_are_alike(texts):
    assert len(set(texts)) == len(texts)
    assert corpus.closest_by_runs(texts)[0] <= 0.10
    assert corpus.closest_by_tfidf(texts)[0] <= 0.55
    assert most_texts_with_a_run(texts) <= 2


def test_vocabulary_is_rich_and_no_word_gives_the_label_away(reviews, texts):
    assert len({word for text in texts for word in corpus.words(text)}) >= 12_000
    accuracy, term = corpus.best_single_term(texts, [r["label"] for r in reviews])
    assert accuracy <= 0.58, term


def test_beginnings_and_endings_do_not_give_the_label_away(reviews):
    assert corpus.edge_accuracy(reviews, lambda tokens: tokens[:3]) <= 0.60
    assert corpus.edge_accuracy(reviews, lambda tokens: tokens[-3:]) <= 0.60


def test_hard_but_not_hopeless_for_a_bag_of_words(reviews):
    scores = corpus.tfidf_by_trait(reviews)
    assert 0.72 <= scores["all"] <= 0.86
    assert scores["not plain"] <= scores["plain"] - 0.05


def test_the_card_holds_the_figures_of_these_reviews(reviews):
    card = (POCKET_REVIEWS / "README.md").read_text(encoding="utf-8")
    assert fill_block(card, "figures", corpus.card_figures(reviews), corpus.COMMAND) == card


def test_the_checks_find_what_they_look_for():
    texts = ["a b c d e f g h", "a b c d e f g h i", "x y z"]
    assert corpus.closest_by_runs(texts)[0] == pytest.approx(4 / 5)
    assert corpus.closest_by_tfidf(["good film here", "good film here", "other"])[0] == pytest.approx(1)
    assert most_texts_with_a_run(texts) == 2
    assert corpus.best_single_term(["good x", "good y", "bad x", "y"], [1, 1, 0, 0]) == (1.0, "good")
