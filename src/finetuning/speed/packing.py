"""Lesson 03: prediction without padding, by one decoder step over reviews laid end to end."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import T5ForConditionalGeneration

from finetuning.errors import CourseError
from finetuning.labels import Answer, Rows
from finetuning.speed.int8 import int8_feed_forward, int8_projection


def by_packing(model: T5ForConditionalGeneration, words: Sequence[int], longest: int, *, int8: bool = False) -> Answer:
    """One decoder step over reviews laid end to end, without padding, and without products that one step does not need.

    Attention runs review by review, on pieces that stay in the processor's cache. The decoder's first step asks every
    review one question, q; its score for a token x, q.(Kx), is computed as (K'q).x, and the values are summed before
    they are projected, so that no keys and values of whole reviews are made: the same numbers with an eighth less
    arithmetic at t5-small's shape. ``longest``: the most tokens of a review. ``int8``: the encoder's projections in
    8-bit integers. Raises CourseError for a T5 with gated feed-forward layers.
    """
    config, heads = model.config, model.config.num_heads
    if config.is_gated_act:
        raise CourseError("Packing is written for T5's plain feed-forward layers; this model has gated ones.")
    encode = _packed_encoder(model, longest, int8)

    def answer(rows: Rows) -> Tensor:
        reviews = torch.nn.utils.rnn.pad_sequence(encode(rows), batch_first=True)  # (reviews, tokens, d_model)
        ends = torch.tensor([len(row) for row in rows], device=model.device)
        beyond = (torch.arange(reviews.shape[1], device=model.device) >= ends[:, None])[:, None]
        x = model.shared.weight[config.decoder_start_token_id].expand(len(rows), -1)
        for block in model.decoder.block:
            own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
            x = x + own.o(own.v(block.layer[0].layer_norm(x)))  # the only position attends to itself
            q = cross.q(block.layer[1].layer_norm(x)).view(len(rows), heads, -1)
            keys, values = (weight.view(heads, config.d_kv, -1) for weight in (cross.k.weight, cross.v.weight))
            asked = torch.einsum("bhd,hdm->bhm", q, keys)
            scores = torch.bmm(asked, reviews.transpose(1, 2)).float().masked_fill(beyond, -torch.inf)
            summed = torch.bmm(scores.softmax(-1).to(reviews.dtype), reviews)
            x = x + cross.o(torch.einsum("bhm,hdm->bhd", summed, values).flatten(1))
            x = block.layer[2](x)
        x = model.decoder.final_layer_norm(x)
        scale = config.d_model**-0.5 if config.tie_word_embeddings else 1.0
        return linear(x * scale, model.lm_head.weight[list(words)])

    return answer


def _packed_encoder(model: T5ForConditionalGeneration, longest: int, int8: bool) -> Callable[[Rows], Sequence[Tensor]]:
    """A function from token ids to the encoder's outputs of each review, of shape (tokens, d_model)."""
    heads = model.config.num_heads
    project, feed_forward = (int8_projection, int8_feed_forward) if int8 else (_plain, _plain_feed_forward)
    encoder = []
    for block in model.encoder.block:
        attention, dense = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        joined = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        forward = feed_forward(dense.wi.weight, dense.wo.weight, block.layer[1].layer_norm)
        encoder.append((project(joined, block.layer[0].layer_norm), project(attention.o.weight), forward))
    first = model.encoder.block[0].layer[0].SelfAttention
    bias = first.compute_bias(longest, longest)[0].to(model.dtype).contiguous()  # (heads, tokens, tokens)

    def attend(joined: Tensor, length: int) -> Tensor:  # (tokens, 3 x heads x d_kv) -> (tokens, heads, d_kv)
        q, k, v = joined.view(length, 3, heads, -1).permute(1, 2, 0, 3).contiguous()
        if model.device.type == "cuda":
            mask = bias[None, :, :length, :length]
            return scaled_dot_product_attention(q[None], k[None], v[None], mask, scale=1.0)[0].transpose(0, 1)
        scores = torch.baddbmm(bias[:, :length, :length], q, k.transpose(1, 2))
        return torch.bmm(scores.softmax(-1), v).transpose(0, 1)

    def encode(rows: Rows) -> Sequence[Tensor]:
        lengths = [len(row) for row in rows]
        x = model.shared(torch.cat([torch.tensor(row) for row in rows]).to(model.device))
        for qkv, o, forward in encoder:
            pieces = qkv(x).split(lengths)
            x += o(torch.cat([attend(*piece) for piece in zip(pieces, lengths, strict=True)]).flatten(1))
            x += forward(x)
        return model.encoder.final_layer_norm(x).split(lengths)

    return encode


def _plain(weight: Tensor, norm: nn.Module | None = None) -> Callable[[Tensor], Tensor]:
    """A projection of x, normalized first where ``norm`` is given."""
    return lambda x: linear(x if norm is None else norm(x), weight)


def _plain_feed_forward(into: Tensor, out: Tensor, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: linear(linear(norm(x), into).relu_(), out)
