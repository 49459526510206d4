"""Reviews cleaned and tokenized per second, by a loop and by ``map``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from finetuning.baselines import tfidf_classifier
from finetuning.batching import token_rows
from finetuning.reviews import clean_text

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

    from finetuning.profiles import Profile


def data_path(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, settings: Profile, *, quick: bool
) -> dict[str, Any]:
    """Reviews per second of cleaning and tokenizing: a loop over them against ``map``; and TF-IDF for comparison.

    Returns a dict: ``reviews``, ``reviews_per_second`` by name, ``tfidf_training`` (reviews, seconds).
    """
    texts = concatenate_datasets([splits[name].select_columns(["text", "label"]) for name in splits])
    texts = texts.select(range(min(len(texts), 400 if quick else 50_000)))
    prompt, limit = settings.prompt, settings.max_length

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return token_rows(tokenizer, [clean_text(text) for text in texts], prompt=prompt, max_length=limit)

    def many(batch: dict[str, list]) -> dict[str, list]:
        return {"input_ids": tokenize(batch["text"])}

    def timed(work: Callable[[], Any]) -> float:
        began = time.perf_counter()
        work()
        return len(texts) / (time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_dict({"text": texts["text"], "label": texts["label"]}).save_to_disk(folder)
        stored = Dataset.load_from_disk(folder)
        speeds = {"a loop, review by review": timed(lambda: [tokenize([text]) for text in stored["text"]])}
        for processes in (1, 2):
            name = f"map, batched, {processes} process{'es' if processes > 1 else ''}"
            share = {"num_proc": processes if processes > 1 else None, "load_from_cache_file": False}
            speeds[name] = timed(partial(stored.map, many, batched=True, **share))
        speeds["map again, from the Arrow cache"] = timed(lambda: stored.map(many, batched=True))
    train = splits["train"]
    train = train.select(range(min(len(train), 400 if quick else 25_000)))
    began = time.perf_counter()
    tfidf_classifier().fit(train["text"], train["label"])
    tfidf = {"reviews": len(train), "seconds": time.perf_counter() - began}
    return {"reviews": len(texts), "reviews_per_second": speeds, "tfidf_training": tfidf}
