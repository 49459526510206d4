"""Lesson 07: a saved model as a ``transformers`` pipeline; importing this module makes its task known.

``pipeline("text2text-generation")`` went with transformers 5, and ``text-classification`` wants a model with an output
per class. Ours answers with a word, so this is the pipeline for it: one review in, the label words and their scores
out.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSeq2SeqLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file

from finetuning.errors import CourseError
from finetuning.labels import by_words, label_tokens
from finetuning.reviews import clean_text
from finetuning.usage import USAGE, read_usage

TASK = "review-sentiment"


class ReviewPipeline(Pipeline):
    """Text -> ``[{"label", "score"}, …]``, the likelier word first; the scores are those of ``labels.score_labels``.

    The text is cleaned, prompted and cut as in training, by what ``finetuning.json`` beside the weights says.
    """

    _load_tokenizer = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        file = cached_file(self.model.name_or_path, USAGE, _raise_exceptions_for_missing_entries=False)
        if file is None:
            raise CourseError(f"{self.model.name_or_path} holds no {USAGE}; save the model as lesson 07 does.")
        self.usage = read_usage(Path(file).parent)
        self.answer = by_words(self.model, label_tokens(self.tokenizer, self.usage["label_words"]))

    def _sanitize_parameters(self) -> tuple[dict, dict, dict]:
        return {}, {}, {}

    def preprocess(self, text: str) -> dict:
        prompted = self.usage["prompt"].format(text=clean_text(text))
        return self.tokenizer(prompted, truncation=True, max_length=self.usage["max_length"], return_tensors="pt")

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        return {"logits": self.answer([ids[mask.bool()].tolist() for ids, mask in pairs])}

    def postprocess(self, outputs: dict) -> list[dict]:
        scores = outputs["logits"][0].float().softmax(-1).tolist()
        pairs = zip(self.usage["label_words"], scores, strict=True)
        return sorted(({"label": word, "score": score} for word, score in pairs), key=lambda answer: -answer["score"])


PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=ReviewPipeline, pt_model=AutoModelForSeq2SeqLM)
