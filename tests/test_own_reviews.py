"""Reviews of one's own: the files people have are read rightly, or refused in one sentence that says what would do."""

import bz2
import csv
import gzip
import io
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from finetuning.__main__ import main
from finetuning.course.runner import run_course
from finetuning.data import drop_rows, find_duplicates, fingerprint, load_reviews, save_splits, split_off
from finetuning.distributed.zero import check_locks
from finetuning.errors import CourseError
from finetuning.models import load_model, load_tokenizer, save_model
from finetuning.profiles import Columns, choose
from finetuning.reviews import open_reviews
from finetuning.shipping.predict import predict_file
from finetuning.usage import save_usage
from finetuning.workspace import Workspace

TEXTS = [f'Film {i} was {"good" if i % 2 else "bad"}, "they" said; \\o/ \tend' for i in range(60)]
LABELS = [i % 2 for i in range(60)]
TRUE = dict(zip(TEXTS, LABELS, strict=True))
WORDS = ["negative" if label == 0 else "positive" for label in LABELS]


def read(place, **options):
    """The labels of a place's reviews by their texts."""
    splits = load_reviews(str(place), **options)
    return {text: label for split in splits.values() for text, label in zip(split["text"], split["label"], strict=True)}


def delimited(columns, rows, **dialect):
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n", **dialect)
    writer.writerows([columns, *rows])
    return file.getvalue()


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(place, sentence, **options):
    with pytest.raises(CourseError, match=sentence) as error:
        load_reviews(str(place), **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


PAIRS = list(zip(TEXTS, WORDS, strict=True))
PLAIN = delimited(("text", "label"), PAIRS)
LITERAL = "text\tlabel\n" + "".join(f"{text.replace(chr(9), ' ')}\t{word}\n" for text, word in PAIRS)
OBJECTS = [{"text": text, "label": word} for text, word in PAIRS]
READ = {
    "mine.csv": PLAIN,
    "MINE.CSV": PLAIN,
    "semicolons.csv": delimited(("text", "label"), PAIRS, delimiter=";"),
    "bars.csv": delimited(("text", "label"), PAIRS, delimiter="|"),
    "excel.csv": "sep=;\n" + delimited(("text", "label"), PAIRS, delimiter=";"),
    "tabs.tsv": delimited(("text", "label"), PAIRS, delimiter="\t"),
    "tabs.txt": delimited(("text", "label"), PAIRS, delimiter="\t"),
    "tabs.csv": delimited(("text", "label"), PAIRS, delimiter="\t"),
    "escaped.csv": delimited(("text", "label"), PAIRS, quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\"),
    "carriage.csv": PLAIN.replace("\n", "\r\n"),
    "packed.csv.gz": gzip.compress(PLAIN.encode()),
    "packed.csv": gzip.compress(PLAIN.encode()),
    "packed.tsv.bz2": bz2.compress(delimited(("text", "label"), PAIRS, delimiter="\t").encode()),
    "utf16.csv": PLAIN.encode("utf-16"),
    "lines.jsonl": "\n".join(map(json.dumps, OBJECTS)),
    "lines.json": "\n".join(map(json.dumps, OBJECTS)),
    "array.json": json.dumps(OBJECTS),
    "pretty.json": json.dumps(OBJECTS, indent=2, ensure_ascii=False),
    "array.json.gz": gzip.compress(json.dumps(OBJECTS).encode()),
}


@pytest.mark.parametrize("name", READ)
def test_files_of_many_forms_are_read_without_being_told(name, tmp_path):
    assert read(written(tmp_path / name, READ[name])) == TRUE


def test_a_quote_between_tabs_is_a_letter(tmp_path):
    texts = [f'"Film {i} is "fine"' if i % 3 else f"plain {i}" for i in range(60)]
    content = "label\ttext\n" + "".join(f"{i % 2}\t{text}\n" for i, text in enumerate(texts))
    assert list(read(written(tmp_path / "mine.tsv", content))) and set(read(tmp_path / "mine.tsv")) == set(texts)


@pytest.mark.parametrize("text", ["text", "review", "sentence", "content", "comment", "Review Text"])
@pytest.mark.parametrize("label", ["label", "sentiment", "polarity", "class", "Sentiment"])
def test_the_usual_column_names_are_known_and_said(text, label, tmp_path, capsys):
    path = written(tmp_path / "mine.csv", delimited(("id", text, label), [(i, *row) for i, row in enumerate(PAIRS)]))
    assert read(path) == TRUE
    said = "" if (text, label) == ("text", "label") else f"text from column {text!r}, label from {label!r}\n"
    assert capsys.readouterr().out == said


def test_other_columns_are_named_and_two_that_could_be_meant_are_refused(tmp_path):
    two = written(tmp_path / "two.csv", delimited(("review", "comment", "label"), [(t, "x", w) for t, w in PAIRS]))
    refused(two, r"no column 'text'; found are 'review', 'comment', 'label'.*TEXT=")
    assert read(two, columns=Columns(text="review")) == TRUE
    own = written(tmp_path / "own.csv", delimited(("text", "opinion", "verdict"), [("x", *row) for row in PAIRS]))
    refused(own, r"no column 'label'.*LABEL=")
    assert read(own, columns=Columns("opinion", "verdict")) == TRUE
    refused(own, "no column 'nothing'", columns=Columns("nothing"))
    twice = written(tmp_path / "twice.csv", delimited(("text", "text", "label"), [("x", *row) for row in PAIRS]))
    refused(twice, "no column 'text'; found are 'text', 'text'")
    twice = written(tmp_path / "twice.csv", delimited(("text", "label", "label"), [(*row, "x") for row in PAIRS]))
    refused(twice, r"no column 'label'; found are 'label.1', 'label.2'.*LABEL=")
    assert read(twice, columns=Columns(label="label.1")) == TRUE


@pytest.mark.parametrize(
    "words",
    [("False", "True"), ("-1", "1"), ("neg", "POS"), ("0.0", "1.0"), (False, True)],
)
def test_labels_of_many_forms(words, tmp_path):
    rows = [(text, words[label]) for text, label in TRUE.items()]
    assert read(written(tmp_path / "mine.csv", delimited(("text", "label"), rows))) == TRUE
    assert (
        read(written(tmp_path / "mine.jsonl", "\n".join(json.dumps({"text": t, "label": w}) for t, w in rows))) == TRUE
    )


@pytest.mark.parametrize(
    ("column", "ratings", "rule", "said"),
    [
        ("stars", (1, 3, 5), "", "up to 2 is negative, from 4 positive, 30 between"),
        ("rating", (2.5, 5, 8.5), "", "up to 4 is negative, from 7 positive, 30 between"),
        ("label", ("1 star", "3 stars", "4 stars"), "", "up to 2 is negative, from 4 positive"),
        ("score", (10, 50, 90), "30,70", "up to 30 is negative, from 70 positive"),
        ("polarity", (0, 2, 4), "0,4", "up to 0 is negative, from 4 positive"),
        ("class", (-0.9, 0, 0.7), "-0.5,0.5", "up to -0.5 is negative, from 0.5 positive"),
    ],
)
def test_ratings_are_read_by_a_rule_that_is_said_and_can_be_set(column, ratings, rule, said, tmp_path, capsys):
    rows = [(f"film {i}", ratings[i % 3]) for i in range(90)]
    path = written(tmp_path / "mine.csv", delimited(("text", column), rows))
    assert read(path, columns=Columns(rating=rule)) == {t: int(r == ratings[2]) for t, r in rows if r != ratings[1]}
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        ("label", (1, 2)),
        ("label", (1, 2, 3, 4, 5)),
        ("stars", (0, 1, 2, 3, 4)),
        ("label", (-1, 0, 1)),
        ("score", (10, 99)),
    ],
)
def test_numbers_that_could_mean_anything_are_refused(column, labels, tmp_path):
    rows = [(f"film {i}", labels[i % len(labels)]) for i in range(60)]
    path = written(tmp_path / "mine.csv", delimited(("text", column), rows))
    refused(path, "the label is .*RATING=low,high")
    with pytest.raises(CourseError, match="two numbers, the lower first"):
        choose(columns={"rating": "7,4"})


def test_shards_are_read_together_and_a_missing_one_is_noticed(tmp_path):
    table = pa.table({"text": TEXTS, "label": LABELS})
    folder = tmp_path / "clone"
    for part, name in (
        (table[:30], "train-00000-of-00002"),
        (table[30:], "train-00001-of-00002"),
        (table, "dev-00000-of-00001"),
    ):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(part, folder / "data" / f"{name}.parquet")
    splits = load_reviews(str(folder))
    assert len(splits["train"]) + len(splits["test"]) == 60 and len(splits["validation"]) == 60
    (folder / "data" / "train-00000-of-00002.parquet").unlink()
    refused(folder, "holds 1 of the shards of 'train'; all of .*are needed")


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_has_many_names(name, tmp_path):
    for split in ("train", name, "TEST"):
        written(tmp_path / f"{split}.csv", PLAIN)
    assert set(load_reviews(str(tmp_path))) == {"train", "validation", "test"}


def test_the_file_of_the_exact_name_is_read_and_the_others_named(tmp_path, capsys):
    written(tmp_path / "train.csv", PLAIN)
    written(tmp_path / "train (1).csv", "text,label\nother,1\n")
    assert read(tmp_path) == TRUE
    assert "read is train.csv, not train (1).csv" in capsys.readouterr().out
    written(tmp_path / "devices.csv", "text,label\nother,1\n")
    assert set(load_reviews(str(tmp_path))) == {"train", "test"}  # cut from train
    written(tmp_path / "train.jsonl", "\n".join(map(json.dumps, OBJECTS)))
    refused(tmp_path, r"holds train.csv, train.jsonl, and one file of the split 'train' is expected")


def labelled_by_name(names, values):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": TEXTS, "label": values}, features=features)


def test_class_labels_are_read_by_their_names(tmp_path):
    inverted = labelled_by_name(["pos", "neg"], [1 - label for label in LABELS])
    inverted.to_parquet(tmp_path / "mine.parquet")
    inverted.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": inverted, "dev": inverted}).save_to_disk(tmp_path / "splits")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for place in (tmp_path / "mine.parquet", arrow, tmp_path / "saved", tmp_path / "splits"):
        assert read(place) == TRUE
    table = pa.table({"text": TEXTS, "label": LABELS})
    with pa.ipc.new_file(tmp_path / "mine.feather", table.schema) as file:
        file.write_table(table)
    assert read(tmp_path / "mine.feather") == TRUE
    pq.write_table(
        pa.table({"text": [text.encode() for text in TEXTS], "label": [b"neg", b"pos"] * 30}), tmp_path / "b.parquet"
    )
    assert read(tmp_path / "b.parquet") == TRUE  # texts that their writer has not marked as text
    (tmp_path / "splits" / "train" / "data-00000-of-00001.arrow").write_bytes(b"")
    refused(tmp_path / "splits", "holds no whole data set")


def test_folders_of_text_files_by_class(tmp_path, capsys):
    for split in ("train", "test"):
        for i, (text, label) in enumerate(TRUE.items()):
            written(tmp_path / split / ("pos" if label else "neg") / f"{i}_9.{'TXT' if i < 9 else 'txt'}", text)
    written(tmp_path / "train" / "unsup" / "0_0.txt", "nobody knows")
    written(tmp_path / "train" / "pos" / "._1_9.txt", b"\xff")  # as macOS leaves them
    splits = load_reviews(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 60, "test": 60} and read(tmp_path) == TRUE
    assert "not read are the folders unsup" in capsys.readouterr().out
    assert read(tmp_path / "test") == TRUE
    written(tmp_path / "test" / "pos" / "11_9.txt", b"caf\xe9")
    refused(tmp_path, r"11_9.txt cannot be read.*save it as UTF-8")


def test_a_test_split_without_labels_is_refused_with_the_way_out(tmp_path):
    written(tmp_path / "train.csv", PLAIN)
    written(tmp_path / "test.csv", delimited(("id", "text"), enumerate(TEXTS)))
    refused(tmp_path, r"\(test\) has no column 'label'; found are 'id'.* Or leave test out: it is then cut from train")


STRAYS = {
    "up to the next text in quotes": (10, '"film', 20, '"film, the 20th"'),
    "up to a quote at the end of a text": (10, '"film', 20, 'film of 5"'),
    "over one row": (1, '"film', 2, 'film of 5"'),
    "up to the end of the file": (10, '"film', 20, "film"),
    "in its own row": (10, '"film" it is', 20, "film"),
}


@pytest.mark.parametrize("labels", [("0", "1"), ("neg", "pos")])
@pytest.mark.parametrize("case", STRAYS)
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_stray_quote_is_named_by_its_line(case, labels, delimiter, tmp_path):
    first, opens, second, closes = STRAYS[case]
    texts = [f"film {i}" for i in range(60)]
    texts[first], texts[second] = opens, closes
    rows = "".join(f"{i}{delimiter}{text}{delimiter}{labels[i % 2]}\n" for i, text in enumerate(texts))
    path = written(tmp_path / "mine.csv", f"id{delimiter}text{delimiter}label\n{rows}")
    refused(path, rf"line {first + 2}: a quote .*opens here")


def test_line_breaks_within_quotes_are_no_stray_quote(tmp_path):
    texts = [f"film {i},\nwell, fine\nand 1, 2, 3\n\n0" for i in range(60)]
    path = written(tmp_path / "mine.csv", delimited(("text", "label"), [(t, i % 2) for i, t in enumerate(texts)]))
    assert set(read(path)) == set(texts)


def test_texts_that_differ_in_signs_are_no_copies():
    keys = ["👍👍", "👎👎👎", "C+", "C", "कि", "की", "!!!", "???", "***", "*"]
    assert len({fingerprint(key) for key in keys}) == len(keys)
    assert fingerprint("A JOY: well-made, (truly)!") == fingerprint("a joy - Well made... truly")
    rows = Dataset.from_dict({"text": ["C-", "C", "Fine!", "fine?", "Same", "same."], "label": [0, 1, 0, 1, 1, 1]})
    found = find_duplicates({"test": rows.select([]), "validation": rows.select([]), "train": rows})
    assert found["train"] == [(5, "train")]


def test_texts_that_are_equal_once_cut_are_dropped_or_refused(tmp_path):
    rows = [f"text {i}" for i in range(60)]
    split = Dataset.from_dict(
        {"text": rows, "label": LABELS, "input_ids": [[5, i // 2 if i < 8 else i, 1] for i in range(60)]}
    )
    splits = DatasetDict({"train": split, "validation": split.select([]), "test": split.select([])})
    found = find_duplicates(splits)
    assert found["train"] == [(1, "train"), (3, "train"), (5, "train"), (7, "train")]
    same = split.remove_columns("input_ids").add_column("input_ids", [[5, 1]] * 60)
    splits = DatasetDict(dict.fromkeys(("train", "validation", "test"), same))
    with pytest.raises(CourseError, match=r"the same tokens .*at least 5 of each"):
        drop_rows(splits, find_duplicates(splits))


@pytest.mark.parametrize("limit", [1, 2, 4, 8, 39])
def test_a_limit_that_teaches_nothing_is_refused_at_once(limit):
    with pytest.raises(CourseError, match=r"limit must be 0 \(all reviews\) or at least 40"):
        choose(limit=limit)


def test_classes_are_counted_after_limit_split_and_copies(tmp_path):
    rare = [(f"film {i}", int(i % 67 == 0)) for i in range(1340)]  # 1.5 % positive
    path = written(tmp_path / "rare.csv", delimited(("text", "label"), rare))
    refused(
        path, r"Cut to LIMIT=100.* \(train\) holds 98 negative and 2 positive reviews; at least 5 of each", limit=100
    )
    splits = split_off(load_reviews(str(path)), "validation", 0.1, 1)
    assert min(sum(split["label"]) for split in splits.values()) >= 2
    path = written(
        tmp_path / "few.csv", delimited(("text", "label"), rare[1:11] + [(f"joy {i}", 1) for i in range(10)])
    )
    refused(path, r"few.csv \(train\) holds 20 reviews; at least 34 are needed")
    copies = Dataset.from_dict({"text": ["Same"] * 50 + list(map(str, range(30))), "label": [0] * 50 + [1] * 30})
    splits = DatasetDict(dict.fromkeys(("train", "validation", "test"), copies))
    with pytest.raises(CourseError, match=r"Without .* the same text .* at least 5 of each"):
        drop_rows(splits, find_duplicates(splits))


def test_further_columns_of_json_may_hold_anything(tmp_path):
    deep = json.loads("[" * 300 + "]" * 300)
    more = [
        {
            "id": 2**70 + i,
            "_row": i,
            "mixed": i if i % 2 else "x",
            "nested": {"a": [i]},
            "deep": deep,
            "tags": ["a"],
            "labels": 3,
        }
        for i in range(60)
    ]
    rows = [row | extra for row, extra in zip(OBJECTS, more, strict=True)]
    path = written(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(path) == TRUE
    splits = split_off(load_reviews(str(path)), "validation", 0.1, 1)
    assert {"_row", "tags"} < set(splits["train"].column_names) and "nested" not in splits["train"].column_names
    save_splits(splits, tmp_path / "saved")
    for wrong, sentence in (
        ('{"text": "\\ud800", "label": 1}', "line 61: not UTF-8 text"),
        ("[" * 100_000, "line 61: not a JSON object"),
        ('{"text": ["a"], "label": 1}', "holds list values.*orient='records'"),
        ('{"text": "a"}', "the label is missing"),
    ):
        written(path, "\n".join([*map(json.dumps, OBJECTS), wrong]))
        refused(path, sentence)
    written(path, json.dumps({"text": dict(enumerate(TEXTS)), "label": dict(enumerate(LABELS))}))
    refused(path, "holds dict values.*orient='records'")


BROKEN = {
    "half.csv.gz": (gzip.compress(PLAIN.encode())[:-200], "half.csv.gz cannot be read|damaged, and the file cannot"),
    "half.json": (json.dumps(OBJECTS)[:-20], "review 60: no whole JSON object"),
    "two.json": (json.dumps(OBJECTS) * 2, "no whole JSON object"),
    "numbers.json": ("[\n1, 2]", "review 1: not a JSON object"),
    "odd.csv": (PLAIN.encode("utf-16")[:-1], "odd.csv cannot be read|damaged"),
    "latin.csv": (PLAIN.replace("Film 7", "Filmé 7").encode("latin-1"), "line 9: not UTF-8 text .*save it as UTF-8"),
    "wide.csv": (PLAIN.encode("utf-16-le"), "not UTF-8 text; save it as UTF-8"),
    "book.csv": (b"PK\x03\x04 and more", "zip archive or an Excel workbook; unpack it, or save it as CSV"),
    "book.xlsx": (b"PK\x03\x04", "no CSV, TSV, JSON .*save it as one of them"),
    "white.csv": ("\n\n  \n", "begins with no line of column names"),
    "nohead.tsv": ("A fine film\t1\n" * 60, "no column 'text'.*the first line names the columns"),
    "three.csv": (PLAIN.replace("positive", "neutral", 1), "30 negative, 1 neutral and 29 positive reviews; .*LABELS="),
    "nan.csv": (PLAIN.replace("positive", "NaN", 3), "review 2: the label is missing"),
    "lists.jsonl": (json.dumps({"text": "a", "label": ["a"]}), r"'label' holds \['a'\]; expected is one label"),
    "none.jsonl": (json.dumps({"text": "a", "label": []}), r"'label' holds \[\]; expected is one label"),
    "empty.csv.gz": (gzip.compress(b""), "is empty; expected are a text and a label"),
    "half.arrow": (b"ARROW1\0\0" + b"x" * 50, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused_in_one_sentence(name, tmp_path):
    content, sentence = BROKEN[name]
    refused(written(tmp_path / name, content), sentence)


def test_a_run_is_known_by_what_it_read(tmp_path, runs, tiny_model):
    here, there = (written(tmp_path / name / "mine.csv", PLAIN) for name in ("a", "b"))
    Workspace("own", choose(reviews=str(here))).keep_seconds(0)
    Workspace("own", choose(reviews=str(there)))  # the same reviews in another place
    written(here, PLAIN.replace("good", "great"))
    for settings, sentence in (
        (
            choose(reviews=str(here)),
            "holds a run with another dataset of this name, or it has been edited since; .*RUN=",
        ),
        (choose(reviews=str(there), columns={"label": "x"}), "holds a run with columns"),
        (choose(reviews=str(there), base_model=str(tiny_model)), "holds a run with model"),
    ):
        with pytest.raises(CourseError, match=sentence):
            Workspace("own", settings)
    folder = tmp_path / "model"
    folder.mkdir()
    written(folder / "config.json", "{}")
    Workspace("model", choose(base_model=str(folder))).keep_seconds(0)
    written(folder / "config.json", "{ }")
    with pytest.raises(CourseError, match="another model of this name"):
        Workspace("model", choose(base_model=str(folder)))


@pytest.mark.parametrize(
    "options",
    [
        *[{"reviews": place} for place in ("/nowhere/mine.csv", "data/mine.CSV", "mine", "x" * 300, "~nobody/x/mine")],
        {"base_model": "/nowhere/t5"},
    ],
)
def test_a_path_that_is_not_there_is_refused_before_anything_is_written(options, runs):
    with pytest.raises(CourseError, match=r"no file or folder .*, and it is no Hub id"):
        run_course(**options)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seed", "5000000000"), "seed must be a whole number from 0 up to 4294967295"),
        (("--name", "n" * 300), "at most 100 of them"),
        (("--limit", "8"), "at least 40"),
        (("--rating", "good"), "two numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(arguments, sentence, capsys):
    assert main(["run", *arguments]) == 1
    assert re.search(sentence, capsys.readouterr().err)


def test_a_runs_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINETUNING_RUNS", str(written(tmp_path / "file", "in the way") / "runs"))
    assert main(["run"]) == 1
    assert "Nothing can be written to" in capsys.readouterr().err


def test_a_folder_that_is_a_pattern_to_deepspeed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path / "course (1)"))
    Workspace("own", choose())
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path / "course [1]"))
    with pytest.raises(CourseError, match="for a pattern; set FINETUNING_RUNS elsewhere"):
        Workspace("own", choose())


@pytest.fixture
def model_folder(tiny_model, runs):
    settings = replace(choose(base_model=str(tiny_model)), max_length=32)
    folder = save_model(load_model(settings), load_tokenizer(settings), runs / "tiny" / "models" / "trainer", [])
    save_usage(folder, settings, ("negative", "positive"))
    return folder


def test_everybody_who_may_read_the_folder_may_read_the_weights(model_folder):
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in model_folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


@pytest.mark.slow
def test_a_full_disk_behind_the_predictions_is_said(model_folder, runs, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "finetuning", "predict", "--run", "tiny", written(tmp_path / "mine.csv", PLAIN)],
            stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, "FINETUNING_RUNS": str(runs)}, cwd=ROOT,
        )  # fmt: skip
    way, *said = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 1 and way.startswith("scored by ") and len(said) == 1
    assert "could not be written: No space left on device" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("module", [("finetuning", "train"), ("finetuning.distributed.train",)])
def test_a_training_that_is_none_is_said(module, tmp_path):
    wrong = {"/no.json": "cannot be read (No such file", written(tmp_path / "no.json", "[1]"): "holds no training"}
    for file, said in wrong.items():
        done = subprocess.run([sys.executable, "-m", *module, file], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1 and "Traceback" not in done.stderr and said in done.stderr


@pytest.mark.parametrize("name", READ)
def test_predict_reads_what_run_reads(name, model_folder, tmp_path):
    output = io.StringIO()
    assert predict_file(str(written(tmp_path / name, READ[name])), model_folder, output) == (60, 0)


def test_predict_finds_or_is_told_the_column(model_folder, tmp_path, capsys):
    path = str(written(tmp_path / "mine.csv", delimited(("review", "comment"), [(text, "") for text in TEXTS])))
    with pytest.raises(CourseError, match=r"no column 'text'.*TEXT="):
        predict_file(path, model_folder, io.StringIO())
    assert predict_file(path, model_folder, io.StringIO(), "review") == (60, 0)
    assert "text from column 'review'" in capsys.readouterr().err
    with pytest.raises(CourseError, match="is a folder and cannot be read"):
        predict_file(str(tmp_path), model_folder, io.StringIO())


def test_rows_that_a_stray_quote_swallows_are_read_again(tmp_path):
    rows = ["1,one", '2,"two', "3,three", '4,"four, too"', "5,five"]
    path = written(tmp_path / "mine.csv", "\n".join(["id,text", *rows]))
    found = [(row.place, row.cells.get("text"), bool(row.problem)) for row in open_reviews(path).rows]
    assert found == [
        ("line 2", "one", False), ("line 3", None, True), ("line 4", "three", False), ("line 5", "four, too", False),
        ("line 6", "five", False),
    ]  # fmt: skip


def test_the_lock_of_a_killed_build_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = written(tmp_path / "py311_cpu" / "cpu_adam" / "lock", "")
    with lock.open():  # as the process that builds holds it
        check_locks()
    with pytest.raises(CourseError, match=rf"A build that was killed has left {lock}.*delete that file"):
        check_locks()
    lock.unlink()
    check_locks()


@pytest.mark.parametrize("by", ["command line", "environment"])
def test_make_passes_names_on_as_they_are(by, tmp_path):
    shown = 'case "$*" in *"finetuning run"*) printf "%s\\n" "$@";; *) echo "$PWD/src/finetuning/__init__.py";; esac'
    python = written(tmp_path / "venv" / "bin" / "python", f"#!/bin/sh\n{shown}\n")
    python.chmod(0o755)
    written(python.parent.parent / "installed", "")
    place = f'my "best" $HOME $(shell touch {tmp_path}/ran) `touch {tmp_path}/ran` it\'s.csv'
    given = {"REVIEWS": place, "LABEL": '$x"', "LABELS": "so la la,$y"}
    words, environment = ["make", "run", f"VENV={python.parent.parent}"], {**os.environ, "MAKEFLAGS": ""}
    environment.pop("PYTHONPATH", None)
    if by == "environment":
        environment |= given
    else:
        words += [f"{name}={value}" for name, value in given.items()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert f"--reviews={place}" in done.stdout.splitlines() and '--label=$x"' in done.stdout.splitlines(), done.stderr
    assert "--labels=so la la,$y" in done.stdout.splitlines()
    assert not (tmp_path / "ran").exists()
