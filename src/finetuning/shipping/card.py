"""Lesson 07: the card of a model, every number of it read from the run's results."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from datasets import DatasetDict
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from finetuning.data import label_words
from finetuning.labels import begin_apart
from finetuning.profiles import ASSETS, describe
from finetuning.results import markdown_table, name_machine, results_table
from finetuning.reviews import LABEL_WORDS
from finetuning.workspace import Workspace

CARD = "README.md"
OPEN_MODELS = ("pocket T5", "google-t5/")  # their licence is Apache 2.0, which what is trained from them may keep


def model_card(workspace: Workspace, splits: DatasetDict, *, remarks: Sequence[str] = ()) -> ModelCard:
    """The card of a run's model as a ``huggingface_hub.ModelCard``: every number in it is read from the run's results.

    ``splits`` are the prepared reviews, whose sizes it tells; ``remarks`` are sentences on what lesson 07 found, which
    stand below the results. It keeps to the outline of Mitchell et al. 2019, "Model cards for model reporting".
    """
    settings, results, row = workspace.settings, workspace.results(), workspace.row("trainer")
    words, tokens = [*label_words(splits["train"])], {tuple(labels) for labels in splits["train"]["labels"]}
    opinions = tuple(words) == LABEL_WORDS
    model, data = describe(settings.model), describe(settings.reviews)
    where = {
        "task_type": "text-classification",
        "task_name": "sentiment of movie reviews" if opinions else f"one of {len(words)} labels for a text",
        "dataset_type": data if _is_hub_id(data) else re.sub(r"\W+", "-", data).strip("-").lower(),
        "dataset_name": data,
        "dataset_split": "test",
        "dataset_revision": settings.reviews_revision,
    }
    accuracy = f"accuracy (95 % interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f}, {row.n_test} reviews)"
    f1 = f"F1 of the label {words[1]}" if len(words) == 2 else "macro-F1"
    card = ModelCardData(
        language="en",
        license="apache-2.0" if model.startswith(OPEN_MODELS) else None,
        library_name="transformers",
        tags=["t5", "sentiment-analysis"] if opinions else ["t5"],
        base_model=model if _is_hub_id(model) else None,
        datasets=[data] if _is_hub_id(data) else None,
        metrics=["accuracy", "f1"],
        model_name=f"{model} fine-tuned on {data}",
        eval_results=[
            EvalResult(**where, metric_type="accuracy", metric_value=row.accuracy, metric_name=accuracy),
            EvalResult(**where, metric_type="f1", metric_value=row.f1, metric_name=f1),
        ],
    )
    others = [other for other in results.rows if other.method in ("majority", "tfidf", "as_shipped", "from_scratch")]
    table = results_table(replace(results, rows=[row, *others]))
    table = table[["method", "accuracy", "95 % interval", "F1", "test reviews"]]
    template = Environment(keep_trailing_newline=True).from_string((ASSETS / "card.md.j2").read_text(encoding="utf-8"))
    text = template.render(
        model=model, data=data, settings=settings, splits=splits, row=row, words=words, remarks=remarks,
        prompt=json.dumps(settings.prompt), python_words=json.dumps(words, ensure_ascii=False),
        table=markdown_table(table.columns, table.to_numpy()),
        machine=name_machine(results.run["hardware"]), versions=results.run["versions"],
        open=model.startswith(OPEN_MODELS), one_step=begin_apart(tokens),
    )  # fmt: skip
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}")


def _is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None
