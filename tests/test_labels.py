"""Labels of the data's own: 2 to 20 words, read as they stand, told apart by their first tokens or as whole words."""

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from unicodedata import normalize

import numpy as np
import pytest
import torch
from conftest import finetuning
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from transformers import EvalPrediction, pipeline

from finetuning.__main__ import main
from finetuning.baselines import telling_words, tfidf_classifier
from finetuning.batching import token_rows
from finetuning.data import label_words, load_reviews, split_off, take
from finetuning.errors import CourseError
from finetuning.evaluation.behaviour import negation_lines, only_for_opinions
from finetuning.labels import by_whole_words, by_words, label_tokens, score_labels
from finetuning.metrics import measure
from finetuning.models import load_model, load_tokenizer, save_model
from finetuning.profiles import Columns, choose
from finetuning.shipping.card import model_card
from finetuning.shipping.pipeline import TASK
from finetuning.shipping.predict import predict_file
from finetuning.speed.recipes import Recipe, Training
from finetuning.trainer import blind_loss, first_step_logits, label_accuracy
from finetuning.usage import load_shipped, save_usage
from finetuning.workspace import Workspace, executed_copy, read_results


def written(path, labels, column="label", rows=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        lines = ((f"text {i} of {labels[i % len(labels)]}", labels[i % len(labels)]) for i in range(rows))
        csv.writer(file).writerows([("text", column), *lines])
    return str(path)


def words_of(place, labels=""):
    """The label words, after a look at whether every text has its own label."""
    splits = load_reviews(place, columns=Columns(labels=labels))
    for split in splits.values():
        names = split.features["label"].names
        for text, label in zip(split["text"], split["label"], strict=True):
            asked = Columns(labels=labels).words()
            label_in_text = text.split(" of ")[1]
            plain = " ".join(normalize("NFC", label_in_text.replace("\u200b", "")).split())
            assert asked.get(plain, plain).lower() == names[label].lower()
    return list(label_words(splits["train"]))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("positive", "negative", "neutral"), ["negative", "neutral", "positive"]),
        (("World", "Sports", "Business", "Sci/Tech"), ["Business", "Sci/Tech", "Sports", "World"]),
        (("Good", "good", "bad"), ["bad", "Good"]),
        (("yes", "no"), ["no", "yes"]),
        (("so\u00a0so", "so so", "so  so", "so\u200b so", "caf\u00e9", "cafe\u0301"), ["caf\u00e9", "so so"]),
        (tuple(f"topic {chr(97 + i)}" for i in range(20)), [f"topic {chr(97 + i)}" for i in range(20)]),
    ],
)
def test_words_are_taken_from_the_data(labels, words, tmp_path, capsys):
    assert words_of(written(tmp_path / "mine.csv", labels, rows=400)) == words
    assert f"labels {', '.join(words)}, 0 of other labels are left out (LABELS=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "asked", "words"),  # the words in the order of the labels
    [
        (("positive", "neutral", "negative"), "positive,neutral,negative", ["positive", "neutral", "negative"]),
        ((1, 2, 3, 4, 5), "1,2,3,4,5", ["1", "2", "3", "4", "5"]),
        ((1.0, 2.0), "1=dull,2=fine", ["dull", "fine"]),
        (("1 star", "3 stars"), "1=poor,3=so = so", ["poor", "so = so"]),
        ((0, 1), "0 = bad , 1 = good", ["bad", "good"]),
        ((0, 1, 2), "0=bad,1=bad,2=good", ["bad", "good"]),
    ],
)
def test_labels_orders_and_names_them(labels, asked, words, tmp_path):
    place = written(tmp_path / "mine.csv", labels, "stars")
    splits = load_reviews(place, columns=Columns(labels=asked))
    assert label_words(splits["train"]) == words and sum(map(len, splits.values())) == 120
    wanted = {
        label: words.index(word) for label, word in zip(labels, Columns(labels=asked).words().values(), strict=True)
    }
    for text, label in zip(splits["train"]["text"], splits["train"]["label"], strict=True):
        assert label == {str(one): number for one, number in wanted.items()}[text.split(" of ")[1]]


def test_labels_that_are_not_named_are_left_out_and_counted(tmp_path, capsys):
    place = written(tmp_path / "mine.csv", ("a", "b", "c", "d"))
    assert words_of(place, "d,a,b") == ["d", "a", "b"]
    assert "labels d, a, b, 30 of other labels are left out" in capsys.readouterr().out


def test_class_labels_bring_their_names(tmp_path):
    names = ["World", "Sports", "Business"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    labels = [i % 3 for i in range(90)]
    rows = Dataset.from_dict(
        {"text": [f"x{i} of {names[i % 3]}" for i in range(90)], "label": labels}, features=features
    )
    rows.to_parquet(tmp_path / "mine.parquet")
    rows.save_to_disk(tmp_path / "saved")
    assert words_of(str(tmp_path / "mine.parquet")) == words_of(str(tmp_path / "saved")) == sorted(names)


def test_folders_of_any_names_are_classes_where_nothing_lies_beside_them(tmp_path, capsys):
    for i in range(90):
        file = tmp_path / "train" / ("sports", "world", "tech")[i % 3] / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text {i} of {file.parent.name}")
    assert words_of(str(tmp_path)) == words_of(str(tmp_path / "train")) == ["sports", "tech", "world"]
    assert words_of(str(tmp_path), "world,tech") == ["world", "tech"]
    assert "not read are the folders sports" in capsys.readouterr().out
    assert words_of(str(tmp_path), "WORLD,Tech") == ["WORLD", "Tech"]
    written(tmp_path / "train" / "train.csv", ("neg", "pos"))
    assert len(load_reviews(str(tmp_path / "train"))["train"]) == 96  # of the file


@pytest.mark.parametrize(
    ("labels", "asked", "sentence"),
    [
        (("only",), "", r"labels are 'only' \(1 in all\); learnt can be 2 to 20: .*LABELS=.*LABEL="),
        (
            tuple(f"l{chr(97 + i)}" for i in range(21)),
            "",
            r"labels are 'la', .*, \.\.\. \(21 in all\); learnt can be",
        ),
        (("a", "b", "c"), "a,x", r"no review has the label 'x'; found are 'a', 'b', 'c'\. LABELS="),
        (("neg", "pos", ""), "", "the label is missing"),
        (("a", "b", ""), "a,b", "the label is missing"),
        (("a", "b", "7"), "", "the labels are words, as 'a', and numbers, as '7'; LABELS="),
        (("{a}", "b"), "", r"the label '\{a\}' has braces, a prompt's signs; LABELS=old=new"),
        (
            ("a", "b", *["c"] * 20),
            "",
            r"holds \d+ a, \d+ b and \d+ c reviews; at least 10 of each .*; LABELS=a,b,c names",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_the_way_out(labels, asked, sentence, tmp_path):
    place = written(tmp_path / "mine.csv", labels)
    with pytest.raises(CourseError, match=f"mine.csv.*{sentence}") as error:
        load_reviews(place, columns=Columns(labels=asked))
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("labels", ["good", "a,,b", "a,a", "=x,b", ",".join(f"l{i}" for i in range(21))])
def test_label_words_that_cannot_be_are_refused(labels, capsys):
    assert main(["run", "--labels", labels]) == 1
    assert "labels must be 2 to 20 label words" in capsys.readouterr().err
    with pytest.raises(CourseError, match="not with rating"):
        choose(columns={"labels": "a,b", "rating": "4,7"})


def test_a_run_of_other_label_words_is_another_run(runs):
    Workspace("own", choose(columns={"labels": "bad,good"})).keep_seconds(0)
    with pytest.raises(CourseError, match="holds a run with labels 'bad,good'"):
        Workspace("own", choose())


def test_draws_keep_the_shares_of_any_number_of_labels():
    for shares in ([50, 50], [97, 3], [10, 20, 70], [1] * 20, [300, 2, 2, 2]):
        labels = np.repeat(np.arange(len(shares)), np.array(shares) * 10)
        names = [f"l{i}" for i in range(len(shares))]
        split = Dataset.from_dict({"text": [str(i) for i in range(len(labels))], "label": labels})
        split = split.cast_column("label", ClassLabel(names=names))
        size = len(labels) // 2
        drawn = np.bincount(take(split, size, 1, 2)["label"], minlength=len(shares))
        assert drawn.sum() == size and np.all(np.abs(drawn - np.array(shares) * 5) <= 1) and drawn.min() >= 2
        parts = split_off({"train": split}, "validation", 0.1, 1)
        assert min(np.bincount(parts["validation"]["label"], minlength=len(shares))) >= 2
        assert sorted([*parts["train"]["text"], *parts["validation"]["text"]]) == sorted(split["text"])
    with pytest.raises(CourseError, match=re.escape("holds 4 l0, 4 l1 and 82 l2 reviews")):
        few = Dataset.from_dict({"text": list(map(str, range(100))), "label": [0] * 6 + [1] * 6 + [2] * 88})
        more = few.cast_column("label", ClassLabel(names=["l0", "l1", "l2"]))
        split_off({"train": more}, "validation", 0.1, 1)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    settings = choose(base_model=str(tiny_model))
    return load_model(settings).eval(), load_tokenizer(settings)


ALIKE = ["one star", "one star and a half", "one", "five stars", "lukewarm"]  # they begin alike, one within another
TEXTS = ["A fine film.", "Dull.", "I laughed, and then I left early, with the others.", "So so."] * 5


def test_both_ways_of_scoring_agree_where_the_first_token_tells_the_words_apart():
    """On pocket T5 itself: whoever has said negative or positive is about to end."""
    model, tokenizer = load_model(choose()).eval(), load_tokenizer(choose())
    rows = token_rows(tokenizer, TEXTS, prompt="sentiment: {text}", max_length=64)
    words = label_tokens(tokenizer)
    with torch.inference_mode():
        step, whole = (answer(rows).softmax(-1) for answer in (by_words(model, words), by_whole_words(model, words)))
    assert torch.allclose(step, whole, atol=1e-3) and torch.equal(step.argmax(1), whole.argmax(1))
    scores, _ = score_labels(model, tokenizer, TEXTS, prompt="sentiment: {text}", max_length=64)
    assert np.allclose(scores, step.numpy(), atol=1e-5)


def test_words_of_several_tokens_are_scored_as_the_product_of_their_tokens(tiny):
    model, tokenizer = tiny
    scores, _ = score_labels(model, tokenizer, TEXTS, prompt="{text}", max_length=16, words=ALIKE)
    assert scores.shape == (len(TEXTS), 5) and np.allclose(scores.sum(axis=1), 1)
    inputs = tokenizer(TEXTS[2], truncation=True, max_length=16, return_tensors="pt")
    expected = []
    for word in ALIKE:
        labels = tokenizer(word, return_tensors="pt")["input_ids"]
        with torch.inference_mode():  # T5's own loss: the mean over the tokens
            expected.append(-model(**inputs, labels=labels).loss.item() * labels.numel())
    expected = np.exp(expected) / np.exp(expected).sum()
    assert np.allclose(scores[2], expected, atol=1e-5)


def test_the_trainers_accuracy_takes_words_that_begin_alike(tiny):
    model, tokenizer = tiny
    words = label_tokens(tokenizer, ALIKE)
    longest = max(map(len, words))
    labels = torch.tensor([[*word, *[-100] * (longest - len(word))] for word in words])
    rows = tokenizer(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**rows, labels=labels).logits
    kept = first_step_logits(words)((logits, None), labels)
    logs = logits.log_softmax(-1)
    for i, right in enumerate(words):
        for j, word in enumerate(words):
            leaves = next((at for at, (a, b) in enumerate(zip(right, word, strict=False)) if a != b), len(word) - 1)
            likelier = (logs[i, leaves, word[leaves]] - logs[i, leaves, right[leaves]]).item()
            assert np.isclose(kept[i, j], likelier, atol=1e-5)  # 0 for the right word
    compute = label_accuracy(words)
    sure = np.eye(5)
    given = EvalPrediction(predictions=sure, label_ids=labels.numpy())
    assert compute(given) == {"accuracy": 1.0, "f1": 1.0}
    given = EvalPrediction(predictions=sure[[1, 1, 2, 3, 4]], label_ids=labels.numpy())
    assert compute(given)["accuracy"] == 0.8 and np.isclose(compute(given)["f1"], (0 + 2 / 3 + 3) / 5)
    two = label_tokens(tokenizer)  # one token each: the logits themselves
    assert torch.equal(first_step_logits(two)(logits, labels), logits[:, 0, [word[0] for word in two]])


@pytest.mark.parametrize("words", [("好", "差"), ("Good", "good"), ("a", "b", " a")])
def test_words_that_are_the_same_to_the_tokenizer_are_refused(words, tiny):
    with pytest.raises(CourseError, match=r"label words .* are the same tokens; .*LABELS=old=new"):
        label_tokens(tiny[1], words)


def test_a_batch_of_words_of_several_lengths_is_trained_on(tiny):
    model, tokenizer = tiny
    training = Training(model, Recipe(grouped=True), label_tokens(tokenizer, ALIKE), 16)
    rows = token_rows(tokenizer, TEXTS[:5], prompt="{text}", max_length=16)
    losses = [training.step(rows, range(5)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_the_loss_of_blind_guesses():
    assert np.isclose(blind_loss([[5, 1]] * 4, 2), np.log(2) / 2) and np.isclose(
        blind_loss([[5, 6, 1], [7, 1]], 3), np.log(3) / 2.5
    )


@pytest.fixture(params=[("bad", "fine", "good"), tuple(ALIKE)], ids=["told apart by the first token", "begin alike"])
def shipped(request, tiny, tiny_model, runs):
    model, tokenizer = tiny
    folder = save_model(model, tokenizer, runs / "tiny" / "models" / "trainer", [])
    settings = replace(choose(base_model=str(tiny_model)), max_length=32)
    save_usage(folder, settings, request.param)
    return folder, settings, request.param


def test_predict_and_pipeline_answer_with_the_models_own_words(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr("finetuning.speed.prediction.bf16_is_fast", lambda: False)  # in the type of the lessons
    folder, settings, words = shipped
    output = io.StringIO()
    assert predict_file(written(tmp_path / "mine.csv", ("x", "y"), rows=9), folder, output) == (9, 0)
    lines = list(csv.DictReader(io.StringIO(output.getvalue())))
    texts = [f"text {i} of {'xy'[i % 2]}" for i in range(9)]
    model, tokenizer, usage = load_shipped(folder)
    scores, _ = score_labels(model, tokenizer, texts, prompt=settings.prompt, max_length=32, words=words)
    assert usage["label_words"] == list(words)
    answers = pipeline(TASK, model=str(folder), batch_size=4)(texts)
    for line, answer, score in zip(lines, answers, scores, strict=True):
        assert line["label"] == words[score.argmax()] == answer[0]["label"]
        assert np.allclose([float(line[f"probability_{word}"]) for word in words], score, atol=1e-5)
        assert np.allclose([{one["label"]: one["score"] for one in answer}[word] for word in words], score, atol=1e-5)


def test_the_lines_of_the_card_answer_with_any_words(shipped, capsys):
    folder, settings, words = shipped
    tokens = label_tokens(load_tokenizer(settings), words)
    rows = {"text": list("abcde")[: len(words)], "label": [*range(len(words))], "labels": tokens}
    split = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=list(words)))
    workspace = Workspace("tiny", settings)
    truth = np.arange(100) % len(words)
    workspace.add_rows(measure("03", "trainer", truth, truth, parameters=1, train_seconds=1.0))
    card = model_card(workspace, DatasetDict(dict.fromkeys(("train", "validation", "test"), split)))
    assert [one.metric_name for one in card.data.eval_results][1] == "macro-F1"
    assert f"answers `{'`, `'.join(words[:-1])}` or `{words[-1]}`" in card.text
    lines = card.text.split("```python\n")[1].split("```")[0]
    exec(lines, {"folder": str(folder)})
    asked = {one["label"]: one["score"] for one in pipeline(TASK, model=str(folder))("What a quiet joy of a film.")}
    assert eval(capsys.readouterr().out) == pytest.approx(asked, abs=1e-5)


def test_the_bag_of_words_tells_the_words_of_each_label():
    texts = [f"the {word} one, number {i}" for i in range(20) for word in ("awful", "lukewarm", "great")]
    labels = [0, 1, 2] * 20
    bag = tfidf_classifier().fit(texts, labels)
    told = telling_words(bag, ("bad", "so so", "good"), 2)
    assert [told[word][0][0] in texts[i] for i, word in enumerate(told)] == [True] * 3
    assert all(weight > 0 for pairs in told.values() for _, weight in pairs)
    assert (bag.predict(texts) == labels).all() and bag.predict_proba(texts).shape == (60, 3)


def test_of_two_labels_the_bag_of_words_is_a_plain_logistic_regression():
    texts = [f"the {word} one, number {i}" for i in range(20) for word in ("awful", "great")]
    bag = tfidf_classifier(3).fit(texts, [0, 1] * 20)
    plain = LogisticRegression(C=10, solver="liblinear", random_state=3).fit(bag[0].transform(texts), [0, 1] * 20)
    assert np.array_equal(bag.predict_proba(texts), plain.predict_proba(bag[0].transform(texts)))
    assert [one.coef_.tolist() for one in bag[-1].estimators_] == [plain.coef_.tolist()]


def test_what_asks_for_praise_and_blame_steps_aside_for_other_labels(capsys):
    assert only_for_opinions(("negative", "positive"), ["a"], ["b"]) == (["a"], ["b"])
    assert capsys.readouterr().out == ""
    assert only_for_opinions(("bad", "fine", "good"), ["a"], ["b"]) == ([], [])
    assert "bad, fine, good: what asks for praise" in capsys.readouterr().out
    assert negation_lines([], {"m": None}) == []


OPINIONS = {
    "three": {
        "negative": ["awful", "a bore", "a mess"],
        "neutral": ["all right", "so so", "nothing special"],
        "positive": ["superb", "a joy", "wonderful"],
    },
    "five": {
        "very bad": ["a disaster", "unbearable"],
        "bad": ["weak", "dull"],
        "fair": ["all right", "so so"],
        "good": ["fine", "well made"],
        "very good": ["superb", "wonderful"],
    },
}
THINGS = ("acting", "story", "music", "script", "ending", "camera work", "dialogue", "pacing", "cast", "first half")
SENTENCES = ("The {} was {}.", "Seen last night: the {} is {}.", "About the {}, I can only say that it was {}.")


@pytest.mark.soak
@pytest.mark.parametrize("name", OPINIONS)
def test_lukewarm_reviews_and_five_verdicts_go_through_the_lessons(name, runs, tmp_path):
    """Three labels told apart by their first tokens, and five of which two begin alike, go through all lessons."""
    opinions = OPINIONS[name]
    rows = [
        (sentence.format(thing, verdict), word)
        for sentence, thing in itertools.product(SENTENCES, THINGS)
        for word, verdicts in opinions.items()
        for verdict in verdicts
    ]
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    done = finetuning(
        "run", "--reviews", tmp_path / "mine.csv", "--labels", ",".join(opinions), "--name", name, runs=runs
    )
    assert done.returncode == 0, done.stderr
    results = {row.method: row for row in read_results(name).rows}
    assert {"majority", "tfidf", "as_shipped", "trainer", "from_scratch", "deepspeed_zero3", "lora"} <= set(results)
    words, data = list(opinions), load_from_disk(runs / name / "data" / "reviews")
    assert data["train"].features["label"].names == words
    truth = np.array(data["test"]["label"])
    assert results["tfidf"].accuracy > 0.9 and results["trainer"].accuracy > results["majority"].accuracy
    for method in ("tfidf", "trainer"):
        kept = json.loads((runs / name / "scores" / f"{method}.json").read_text())["test"]
        given = np.argmax(kept, axis=1)
        assert np.isclose(results[method].f1, f1_score(truth, given, average="macro"))
    for model in (runs / name / "models" / "trainer", runs / f"{name}-own" / "models" / "own"):  # of lessons 03 and 05
        assert json.loads((model / "finetuning.json").read_text())["label_words"] == words
    last = json.dumps(executed_copy(name, "07_evaluate_and_ship"))
    for said in ("is for negative and positive alone", *(f"{word}: taken for another label" for word in words)):
        assert said in last
    assert f"with one of its {len(words)} words" in (runs / name / "models" / "trainer" / "README.md").read_text()
