"""Reading, checking, cleaning and splitting reviews, wrong files above all."""

import json

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from authoring import raw_reviews
from finetuning.batching import padded_tokens, token_lengths, truncation_loss
from finetuning.data import (
    clean,
    clean_text,
    drop_rows,
    find_duplicates,
    find_near_copies,
    load_reviews,
    save_splits,
    split_off,
    take,
)
from finetuning.errors import CourseError
from finetuning.profiles import POCKET_REVIEWS, POCKET_T5, RAW_REVIEWS

GOOD = [
    {"text": f"A fine film, number {i}." if i % 2 else f"A poor film, number {i}.", "label": i % 2} for i in range(60)
]


def write(path, rows):
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_single_file_is_read_and_split(tmp_path, suffix):
    splits = load_reviews(str(write(tmp_path / f"mine{suffix}", GOOD)))
    assert {name: len(split) for name, split in splits.items()} == {"train": 48, "test": 12}
    assert sum(splits["test"]["label"]) == 6
    assert {
        text: label for split in splits.values() for text, label in zip(split["text"], split["label"], strict=True)
    } == {row["text"]: row["label"] for row in GOOD}


def test_a_folder_of_files_and_more_columns(tmp_path):
    write(tmp_path / "train.csv", [{**row, "stars": 3} for row in GOOD])
    write(tmp_path / "test.jsonl", GOOD[:10])
    splits = load_reviews(str(tmp_path))
    assert len(splits["train"]) == 60 and len(splits["test"]) == 10
    assert "stars" in splits["train"].column_names


@pytest.mark.parametrize(
    "words", [("neg", "pos"), ("negative", "positive"), ("0", "1"), (0.0, 1.0), ("Negative", " POS ")]
)
def test_labels_in_words(tmp_path, words):
    rows = [{"text": row["text"], "label": words[row["label"]]} for row in GOOD]
    splits = load_reviews(str(write(tmp_path / "mine.csv", rows)))
    assert set(splits["train"]["label"]) == {0, 1}
    for text, label in zip(splits["train"]["text"], splits["train"]["label"], strict=True):
        assert ("fine" in text) == (label == 1)


def test_a_bom_commas_quotes_and_line_breaks_in_a_csv(tmp_path):
    path = tmp_path / "mine.csv"
    rows = [{"text": f'He said "no",\nthen left {i}', "label": i % 2} for i in range(60)]
    path.write_bytes(b"\xef\xbb\xbf" + pd.DataFrame(rows).to_csv(index=False).encode())
    assert any("\n" in text for text in load_reviews(str(path))["train"]["text"])


def test_a_review_of_three_megabytes(tmp_path):
    rows = [*GOOD, {"text": "long " * 600_000, "label": 1}]
    splits = clean(load_reviews(str(write(tmp_path / "mine.csv", rows))))
    longest = max(len(text) for split in splits.values() for text in split["text"])
    assert longest == 100_000 - 1  # cut, and the last blank gone


def test_limit_is_stratified_and_seeded(tmp_path):
    path = str(write(tmp_path / "mine.csv", GOOD))
    first, again, other = (load_reviews(path, limit=40, seed=seed) for seed in (1, 1, 2))
    assert len(first["train"]) == 40 and len(first["test"]) == 12
    assert sum(first["train"]["label"]) == 20
    assert first["train"]["text"] == again["train"]["text"] != other["train"]["text"]


def test_split_off_takes_every_row_once(tmp_path):
    splits = load_reviews(str(write(tmp_path / "mine.csv", GOOD)))
    parts = split_off(splits, "validation", 0.25, 1)
    texts = [text for split in parts.values() for text in split["text"]]
    assert sorted(texts) == sorted(row["text"] for row in GOOD)
    assert sum(parts["validation"]["label"]) * 2 == len(parts["validation"]) == 12


def test_take_keeps_the_balance():
    from datasets import Dataset

    split = Dataset.from_dict({"text": list("abcdefghij"), "label": [0] * 8 + [1] * 2})
    assert sum(take(split, 5, 1)["label"]) == 1


def test_clean_text():
    assert clean_text("One<br /><br>two &amp; three&#39;s  \n four<BR/>") == "One two & three's four"


def test_duplicates_and_leaks_are_found_and_dropped():
    from datasets import Dataset, DatasetDict

    splits = DatasetDict(
        {
            "train": Dataset.from_dict(
                {
                    "text": ["Same!", "new", "same", "Test one", "NEW.", *map(str, range(40))],
                    "label": [0] * 5 + [0, 1] * 20,
                }
            ),
            "validation": Dataset.from_dict({"text": ["test: ONE", *"klmn"], "label": [0] + [0, 1] * 2}),
            "test": Dataset.from_dict({"text": ["test one", *"opqr"], "label": [0] + [0, 1] * 2}),
        }
    )
    found = find_duplicates(splits)
    assert found == {"test": [], "validation": [(0, "test")], "train": [(2, "train"), (3, "test"), (4, "train")]}
    kept = drop_rows(splits, found)
    assert [list(kept[name]["text"]) for name in ("train", "validation", "test")] == [
        ["Same!", "new", *map(str, range(40))],
        [*"klmn"],
        ["test one", *"opqr"],
    ]


def jaccard(one, other):
    runs = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split())]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_near_copies_are_found_by_their_shared_wording():
    from datasets import Dataset

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 60)) for _ in range(700)]
    texts[600] = texts[3][:80] + " " + texts[600][80:]  # two thirds of the words, then its own
    texts[650] = texts[4] + " x y"
    texts[20] = texts[5][:20] + " " + texts[20][20:]  # too little shared
    texts = [text.replace(" ", "w ") + "w" for text in texts]
    words = {name: Dataset.from_dict({"text": part}) for name, part in (("test", texts[:10]), ("train", texts[10:]))}
    found = find_near_copies(words, 0.4)
    assert [pair[1:] for pair in found] == [(("test", 4), ("train", 640)), (("test", 3), ("train", 590))]
    for overlap, *places in found:
        assert np.isclose(overlap, jaccard(*(words[name]["text"][row] for name, row in places)))


def test_near_copies_need_enough_words():
    from datasets import Dataset

    texts = ["A fine film.", "A fine film!", "", "One two three four five six seven"]
    assert find_near_copies({"train": Dataset.from_dict({"text": texts, "label": [0] * 4})}) == []


# The raw reviews of lesson 01: every check has something to find, and finds just that


@pytest.fixture(scope="module")
def scraped():
    return load_reviews(str(RAW_REVIEWS))


def test_the_raw_reviews_are_what_their_script_makes():
    for name, rows in raw_reviews.make().items():
        shipped = [json.loads(line) for line in (RAW_REVIEWS / f"{name}.jsonl").read_text().splitlines()]
        assert shipped == rows, f"run {raw_reviews.COMMAND}"
    assert raw_reviews.card_figures(raw_reviews.make()) in (RAW_REVIEWS / "README.md").read_text()


def test_the_raw_reviews_come_from_training_reviews_alone(scraped):
    texts = {row["id"]: row for row in map(json.loads, (POCKET_REVIEWS / "train.jsonl").read_text().splitlines())}
    assert sum(map(len, scraped.values())) == 80
    for split in scraped.values():
        assert all(texts[name]["label"] == label for name, label in zip(split["id"], split["label"], strict=True))
        assert np.isclose(np.mean(split["label"]), 0.7)


def test_cleaning_finds_html_and_entities_in_the_raw_reviews_and_leaves_none(scraped):
    raw, cleaned = (" ".join(text for split in s.values() for text in split["text"]) for s in (scraped, clean(scraped)))
    for trace in ("<br", "<BR>", "&#x27;", "&quot;", "  "):
        assert trace in raw and trace not in cleaned


def test_copies_leaks_and_near_copies_of_the_raw_reviews_are_found(scraped):
    cleaned = clean(scraped)
    found = find_duplicates(cleaned)
    assert not found["test"] and sorted(where for _, where in found["train"]) == ["test"] * 3 + ["train"] * 5
    kept = drop_rows(cleaned, found)
    near = find_near_copies(kept)
    assert len(near) == 4 and sum(first[0] == "test" for _, first, _ in near) == 1
    for _, *pair in near:
        assert len({kept[name]["id"][row] for name, row in pair}) == 1  # made from one review
    ids = [name for split in kept.values() for name in split["id"]]
    assert len(ids) - len(set(ids)) == 4  # nothing else is alike


def test_the_shortest_raw_review_is_the_one_cut_short(scraped):
    shortest = min(clean(scraped)["train"], key=lambda review: len(review["text"]))
    assert shortest["id"] in raw_reviews.UNDECIDABLE and shortest["text"].endswith("read more")


def test_the_shipped_reviews_pass_the_checks_that_the_raw_ones_fail():
    splits = load_reviews(str(POCKET_REVIEWS))
    assert all(split["text"][:] == clean(splits)[name]["text"][:] for name, split in splits.items())
    assert not any(find_duplicates(splits).values()) and not find_near_copies(splits)
    assert all(0.45 < np.mean(split["label"]) < 0.55 for split in splits.values())


def test_padding_is_counted_as_the_collator_pads():
    lengths = np.array([3, 5, 2, 8, 9])
    assert padded_tokens(lengths, 2, "to max_length", max_length=8) == 5 * 8
    assert padded_tokens(lengths, 2, "grouped", max_length=8) == 2 * 8 + 2 * 5 + 2
    assert (
        padded_tokens(lengths, 2, "grouped", max_length=8)
        <= padded_tokens(lengths, 2, "to longest", max_length=8)
        <= 40
    )
    with pytest.raises(CourseError, match="no padding strategy"):
        padded_tokens(lengths, 2, "sideways")


def test_truncation_loss():
    cut, lost = truncation_loss(np.array([2, 4, 10]), [4, 10])
    assert np.allclose(cut, [1 / 3, 0]) and np.allclose(lost, [6 / 16, 0])


def test_token_lengths_count_prompt_and_end():
    tokenizer = AutoTokenizer.from_pretrained(POCKET_T5)
    assert token_lengths(["good"], tokenizer, "sentiment: {text}").tolist() == [4]


def test_saving_leaves_the_old_data_when_the_disk_refuses(tmp_path):
    from datasets import load_from_disk

    splits = load_reviews(str(POCKET_REVIEWS), limit=40)
    folder = save_splits(splits, tmp_path / "data" / "reviews")
    assert len(load_from_disk(folder)["train"]) == 40
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CourseError, match="Could not write"):
        save_splits(splits, tmp_path / "file" / "reviews")
