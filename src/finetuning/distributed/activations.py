"""Lessons 04 and 05: bytes of activations at the peak of a training step, by a formula over the shape and measured."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, T5Config

from finetuning.errors import CourseError
from finetuning.trainer import label_token_loss

# Bytes per value of a layer's products, and of the sums that run past the layers
PRECISIONS = {"fp32": (4, 4), "bf16": (2, 2), "autocast": (2, 4)}


def activation_bytes(
    shape: T5Config, reviews: int, tokens: tuple[int, int], *, precision: str = "bf16", checkpointing: bool = False
) -> dict[str, int]:
    """Bytes of activations at the peak of a training step of ``reviews`` reviews: a dict of part -> bytes.

    Korthikanti et al. 2022 (arXiv 2205.05198, section 4) add up what each layer of a decoder saves for its backward
    pass; this is their sum for T5: RMS norms that save an fp32 copy, ``d_kv * num_heads`` apart from ``d_model``,
    cross-attention, gated or plain feed-forward, no dropout, no fused kernels. ``encoder``, ``decoder`` and ``logits``
    are saved for the backward pass (with ``checkpointing`` only each layer's inputs); ``backward`` is what the backward
    pass adds at its highest moment: gradients, and with ``checkpointing`` a layer computed again. The tests hold the
    estimate against what PyTorch saves, and against all that is alive at the peak of a step. ``shape``: a T5Config;
    ``tokens``: (input, label) lengths; ``precision``: fp32, bf16 (the weights are in bf16, as in DeepSpeed) or autocast
    (fp32 weights and bf16 arithmetic, as in the Trainer; its copies of the weights are not counted).
    """
    if precision not in PRECISIONS:
        raise CourseError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}.")
    read, written = tokens
    autocast = precision == "autocast"
    width, stream = PRECISIONS[precision]
    d, inner, heads, layers = shape.d_model, shape.d_kv * shape.num_heads, shape.num_heads, shape.num_decoder_layers

    def norm(readers: int) -> int:  # autocast makes a bf16 copy for each linear layer that reads the normed states
        return 4 + d * (8 + 2 * readers if autocast else 10 if precision == "bf16" else 12)

    def attention(length: int) -> int:  # autocast: the softmax in fp32 and its bf16 copy
        return length * (norm(3) + 4 * inner * width) + heads * length**2 * (6 if autocast else width)

    def feed_forward(length: int) -> int:
        kept = width * shape.d_ff * _kept_by_activation(shape, autocast)
        return length * (norm(2 if shape.is_gated_act else 1) + kept)

    def gradients(length: int) -> int:  # while a layer is passed backwards, beyond what it saved: two of its largest
        return max(2 * width * length * shape.d_ff, 2 * stream * heads * length**2 - feed_forward(length))

    cross = written * (norm(1) + 2 * inner * width) + read * (2 * inner * width + (4 * d if autocast else 0))
    cross += heads * width * read * written
    encoder_layer = attention(read) + feed_forward(read)
    decoder_layer = attention(written) + cross + feed_forward(written)
    logits = reviews * 4 * written * shape.vocab_size  # cross-entropy keeps the log-probabilities in fp32
    ends = read * (norm(0) + 8), written * (norm(1) + 8)
    places, bias = 8 * read**2, heads * stream * read**2  # of relative positions: once, whatever the number of reviews
    if checkpointing:  # a layer's inputs; beside them the masks and the position bias, which all layers share
        masks = stream * read * (read + written), stream * written**2
        output = read * d * stream if autocast else 0
        encoder = reviews * (shape.num_layers * read * d * stream + ends[0] + masks[0] + output) + bias
        decoder = reviews * (layers * written * d * stream + ends[1] + masks[1])
        decoder += heads * stream * written * (written + read)
        # one layer computed again; its input is there already
        again = [reviews * (encoder_layer + gradients(read) - read * d * stream) + places + bias]
        again.append(reviews * (decoder_layer + gradients(written) - written * d * stream))
    else:
        encoder = reviews * (shape.num_layers * encoder_layer + ends[0]) + places
        decoder = reviews * (layers * decoder_layer + ends[1]) + 8 * written**2
        again = [reviews * gradients(read), 0]
    # The backward pass goes through logits, decoder and encoder in turn and frees each behind it. T5 uses its embedding
    # in all three; the gradient from one waits for the next, and where two are added up there are three of its size.
    embedding = stream * shape.vocab_size * d
    freed = logits + decoder
    backward = max(2 * logits, embedding + max(0, again[1] - logits, 2 * embedding - freed, again[0] - freed))
    return {"encoder": encoder, "decoder": decoder, "logits": logits, "backward": backward}


def _kept_by_activation(shape: T5Config, autocast: bool) -> int:
    """How many tensors of d_ff values per token the feed-forward layer saves."""
    kept = {"relu": 0, "gelu_new": 4}.get(shape.dense_act_fn, 1)  # gelu_new is written out in five operations
    if shape.is_gated_act:
        return kept + 3  # both factors and their product
    return kept + 1 + (autocast and shape.dense_act_fn == "relu")


def saved_bytes(model: PreTrainedModel, batch: dict) -> int:
    """Measured: bytes that the forward pass of the Trainer's loss saves for the backward pass, parameters left out.

    ``batch`` as the collator makes it, with ``decoder_input_ids``. Each stored tensor is counted once.
    """
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # with the labels T5 would compute a loss of its own too
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = label_token_loss(model(**inputs), batch["labels"])  # noqa: F841  holds what was saved until it is counted
    return sum(size for address, size in saved.items() if address not in own)
