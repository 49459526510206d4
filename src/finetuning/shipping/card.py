"""Lesson 05: the card of a model, every number of it read from the run's results."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from datasets import DatasetDict
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetuning.labels import LABEL_WORDS
from finetuning.profiles import Profile, describe
from finetuning.results import ResultRow, Results, markdown_table, name_machine, results_table
from finetuning.workspace import Workspace

CARD = "README.md"
NO_LICENCE = "No licence is stated: add the one of the model it started from."
OPEN_MODELS = ("pocket T5", "google-t5/")  # their licence is Apache 2.0, which what is trained from them may keep


def model_card(
    workspace: Workspace, splits: DatasetDict, *, method: str = "trainer", remarks: Sequence[str] = ()
) -> ModelCard:
    """The card of a run's model as a ``huggingface_hub.ModelCard``: every number in it is read from the run's results.

    ``splits`` are the prepared reviews, whose sizes it tells; ``remarks`` are sentences on what lesson 05 found, which
    stand below the results. It keeps to the outline of Mitchell et al. 2019, "Model cards for model reporting".
    """
    settings, results, row = workspace.settings, workspace.results(), workspace.row(method)
    model, data = describe(settings.model), describe(settings.reviews)
    where = {
        "task_type": "text-classification",
        "task_name": "sentiment of movie reviews",
        "dataset_type": data if _is_hub_id(data) else re.sub(r"\W+", "-", data).strip("-").lower(),
        "dataset_name": data,
        "dataset_split": "test",
        "dataset_revision": settings.reviews_revision,
    }
    interval = f"95 % interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f}, {row.n_test} reviews"
    card = ModelCardData(
        language="en",
        license="apache-2.0" if model.startswith(OPEN_MODELS) else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["t5", "sentiment-analysis"],
        base_model=model if _is_hub_id(model) else None,
        datasets=[data] if _is_hub_id(data) else None,
        metrics=["accuracy", "f1"],
        model_name=f"{model} fine-tuned on {data}",
        eval_results=[
            EvalResult(
                **where, metric_type="accuracy", metric_value=row.accuracy, metric_name=f"accuracy ({interval})"
            ),
            EvalResult(**where, metric_type="f1", metric_value=row.f1, metric_name="F1 of the positive class"),
        ],
    )
    text = _card_text(settings, results, row, {name: len(split) for name, split in splits.items()}, remarks)
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}")


def _is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None


def _card_text(
    settings: Profile, results: Results, row: ResultRow, sizes: dict[str, int], remarks: Sequence[str]
) -> str:
    model, data, run = describe(settings.model), describe(settings.reviews), results.run
    others = [other for other in results.rows if other.method in ("majority", "tfidf", "as_shipped", "from_scratch")]
    machine, versions = name_machine(run["hardware"]), run["versions"]
    return "\n".join(
        [
            f"# {model} fine-tuned on {data}",
            "",
            f"Reads a movie review and answers `{LABEL_WORDS[0]}` or `{LABEL_WORDS[1]}`: {row.parameters:,} "
            "parameters, "
            f"accuracy {row.accuracy:.3f} (95 % interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f}) on "
            f"{row.n_test:,} test reviews.",
            "",
            "## How to use it",
            "",
            "The answer is one token long, so one decoder step is enough. `folder` is where this card lies, or "
            "the model's id "
            "on the Hub.",
            "",
            "```python",
            _snippet(settings),
            "```",
            "",
            "## What it learned from",
            "",
            f"{sizes['train']:,} training reviews of {data}; {sizes['validation']:,} validation reviews chose "
            "the checkpoint, "
            f"and {sizes['test']:,} test reviews, which training never saw, gave the numbers. Repeated reviews "
            "were taken out.",
            "",
            f"Start: {model}. {settings.epochs} epochs, batches of {settings.batch_size}, AdamW, learning rate "
            f"{settings.learning_rate:g}, at most {settings.max_length:,} tokens, seed {settings.seed}. "
            f"{row.train_seconds:.0f} s on {machine}, with transformers {versions['transformers']} and torch "
            f"{versions['torch']}.",
            "",
            "## How good it is",
            "",
            _accuracies(replace(results, rows=[row, *others])),
            "",
            "Intervals: percentile bootstrap over the test reviews. The other rows are baselines on the same reviews.",
            *(["", *[f"- {remark}" for remark in remarks]] if remarks else []),
            "",
            "## Limits",
            "",
            *[f"- {limit}" for limit in _limits(row.n_test, data, settings.max_length)],
            *([] if model.startswith(OPEN_MODELS) else ["", NO_LICENCE]),
            "",
        ]
    )


def _accuracies(results: Results) -> str:
    table = results_table(results)[["method", "accuracy", "95 % interval", "F1", "test reviews"]]
    return markdown_table(table.columns, table.to_numpy())


def _limits(reviews: int, data: str, max_length: int) -> list[str]:
    return [
        f"Measured on {reviews:,} reviews of {data} and on nothing else: expect less on other kinds of text.",
        f"It reads English, and of a long review only the first {max_length:,} tokens.",
        "It always answers with one of two words: a text that is mixed, neutral or no review at all gets one of "
        "them as well.",
        "The score is the model's own probability between the two words, and no promise that it is right as often.",
        "It judges texts, not people; do not let it decide about anybody.",
    ]


def _snippet(settings: Profile) -> str:
    prompt, words = json.dumps(settings.prompt), ", ".join(f'"{word}"' for word in LABEL_WORDS)
    return f"""\
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
text = {prompt}.format(text="What a quiet joy of a film.")
inputs = tokenizer(text, truncation=True, max_length={settings.max_length}, return_tensors="pt")
start = torch.tensor([[model.config.decoder_start_token_id]])
words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ({words})]
with torch.inference_mode():
    scores = model(**inputs, decoder_input_ids=start).logits[0, 0, words].softmax(-1)
print(dict(zip(({words}), scores.tolist())))"""
