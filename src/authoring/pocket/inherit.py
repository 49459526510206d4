"""How pocket T5 starts: its encoder is cut out of the judge's.

Both have the same number of layers; the small one is narrower, with fewer heads and fewer feed-forward units. The
directions, heads and units to keep are those that carry most. Then the layers are fitted one after the other, by ridge
regression on some passages: each matrix to give what the judge has at the same place, from what the small model really
has there, so that a layer makes up for what the earlier ones lost (as He et al. 2017, "Channel Pruning", do for
convolutions). Position biases and decoder stay as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from authoring.pocket.judge import framed, in_one_batch
from authoring.pocket.pieces import PAD

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedModel

LARGEST_GROWTH = (
    0.93  # a sublayer may make the residual stream longer by 1 / 0.93 at most: steps of training stay comparable
)


def ridge(inputs: Tensor, wanted: Tensor) -> Tensor:
    """Weights (outputs, inputs) of the linear map from ``inputs`` to ``wanted``, both rows of tokens."""
    import torch

    inputs, wanted = inputs.double(), wanted.double()
    square = inputs.T @ inputs
    square += 1e-3 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, inputs.T @ wanted).T.float()


def shrinking(before: Tensor, after: Tensor) -> float:
    """By what factor the judge's layer norm makes the sum ``before`` to ``after``, on the whole."""
    return max(LARGEST_GROWTH, float((after * before).sum() / (before * before).sum()))


class Seen:
    """What the judge and the small model have at every token of some passages, layer by layer.

    Batches stay apart, for attention; the methods give rows of tokens, without padding and without prefix.
    """

    def __init__(self, judge: nn.Module, batches: list[list[np.ndarray]], first: int, asked: list[Tensor]) -> None:
        import torch

        self.asked, self.kept, self.starts, self.judged = asked, [], [], []
        encoder = judge.encoder
        usual = encoder.config._attn_implementation
        encoder.set_attn_implementation("eager")  # the one that tells its probabilities
        for texts, ids in zip(batches, asked, strict=True):
            record: dict[Any, Tensor] = {}
            hooks = []
            for at, layer in enumerate(encoder.encoder.layer):
                for name, module in (
                    ("heads", layer.attention.self),
                    ("middle", layer.attention),
                    ("units", layer.intermediate),
                ):
                    hooks.append(module.register_forward_hook(_keeper(record, (name, at))))
            given = in_one_batch(framed(texts, first))
            with torch.inference_mode():
                answer = encoder(given, (given != PAD).long(), output_hidden_states=True, output_attentions=True)
            for hook in hooks:
                hook.remove()
            record |= {("layer", at): hidden for at, hidden in enumerate(answer.hidden_states)}
            record |= {("attention", at): share for at, share in enumerate(answer.attentions)}
            self.judged.append(record)
            self.kept.append((given != PAD)[:, 1:])  # without the judge's first token
            self.starts.append(ids.shape[1] - given.shape[1] + 1)  # tokens of the prefix
        encoder.set_attn_implementation(usual)

    def judge(self, name: str, layer: int) -> Tensor:
        """``layer``: its hidden states before layer ``layer``; ``heads``, ``middle``, ``units``: those inside it."""
        import torch

        return torch.cat([r[name, layer][:, 1:][kept] for r, kept in zip(self.judged, self.kept, strict=True)]).clone()

    def model(self, streams: list[Tensor]) -> Tensor:
        """What the small model has, one tensor (rows, length, width) per batch, as rows of tokens."""
        import torch

        return torch.cat([x[:, s:][kept] for x, s, kept in zip(streams, self.starts, self.kept, strict=True)])

    def looks_back(self, layer: int) -> Tensor:
        """How much more a head attends to the token before than to the one after; shape (heads,)."""
        import torch

        shares = [record["attention", layer] for record in self.judged]
        before = [share.diagonal(-1, 2, 3).mean((0, 2)) - share.diagonal(1, 2, 3).mean((0, 2)) for share in shares]
        return torch.stack(before).mean(0)


def _keeper(record: dict, key: tuple[str, int]) -> Any:
    def keep(module: nn.Module, given: Any, answer: Any) -> None:
        record[key] = (answer[0] if isinstance(answer, tuple) else answer).clone()

    return keep


def inherit(model: PreTrainedModel, judge: nn.Module, seen: Seen, own: list[int]) -> Tensor:
    """Cut the encoder of ``model`` out of the judge's; ids in ``own`` keep their random vectors.

    Returns the weights (384, width) that take the encoder's output nearest to the judge's last hidden states.
    """
    import torch

    encoder, depth, width = judge.encoder, model.config.num_layers, model.config.d_model
    with torch.no_grad():
        layers = [seen.judge("layer", at) for at in range(depth + 1)]
        spread = sum(hidden.T @ hidden / hidden.pow(2).sum() for hidden in layers)
        axes = torch.linalg.eigh(spread)[1].flip(1)[:, :width]  # the directions that carry most
        table = encoder.embeddings
        places = table.position_embeddings.weight[1:80].mean(0) + table.token_type_embeddings.weight[0]
        words = table.LayerNorm(table.word_embeddings.weight + places) @ axes
        scale = 1 / float((layers[0] @ axes).pow(2).mean().sqrt())  # T5 expects embeddings of variance 1
        start = words * scale
        start[own] = model.shared.weight[own]
        model.shared.weight.copy_(start)
        streams = [model.shared(ids) for ids in seen.asked]
        for at, block in enumerate(model.encoder.block):
            streams, scale = _inherit_attention(
                block.layer[0], encoder.encoder.layer[at], at, seen, streams, axes, scale
            )
            streams, scale = _inherit_units(block.layer[1], encoder.encoder.layer[at], at, seen, streams, axes, scale)
        return ridge(seen.model(list(map(model.encoder.final_layer_norm, streams))), layers[-1])


def _inherit_attention(
    part: Any, layer: Any, at: int, seen: Seen, streams: list[Tensor], axes: Tensor, scale: float
) -> tuple[list[Tensor], float]:
    """Fit a layer's attention; returns the streams after it and their length beside the judge's hidden states."""
    import torch

    attention, theirs = part.SelfAttention, layer.attention.self
    heads, size = attention.n_heads, attention.key_value_proj_dim
    output, before, outputs = layer.attention.output.dense, seen.judge("layer", at), seen.judge("heads", at)
    slices = torch.arange(outputs.shape[1]).view(-1, size)
    weights = torch.stack([(outputs[:, own] @ output.weight[:, own].T).pow(2).sum() for own in slices])
    chosen = weights.topk(heads).indices
    # All layers share T5's position biases: so heads that look back stand at the same place in every layer.
    chosen = chosen[seen.looks_back(at)[chosen].argsort()]
    rows = slices[chosen].flatten()
    given = list(map(part.layer_norm, streams))
    flat = seen.model(given)
    for mine, its, factor in (
        (attention.q, theirs.query, 1 / math.sqrt(size)),
        (attention.k, theirs.key, 1),
        (attention.v, theirs.value, 1),
    ):
        mine.weight.copy_(ridge(flat, its(before)[:, rows] * factor))  # T5 does not divide the scores
    mixed = []
    for stream, ids in zip(given, seen.asked, strict=True):
        q, k, v = (
            project(stream).view(*ids.shape, heads, size).transpose(1, 2)
            for project in (attention.q, attention.k, attention.v)
        )
        scores = q @ k.mT + torch.where(ids != PAD, 0.0, -1e9)[:, None, None]
        mixed.append((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    middle = seen.judge("middle", at)
    scale /= shrinking(before + output(outputs), middle)
    attention.o.weight.copy_(ridge(seen.model(mixed), scale * middle @ axes - seen.model(streams)))
    return [stream + attention.o(heads) for stream, heads in zip(streams, mixed, strict=True)], scale


def _inherit_units(
    part: Any, layer: Any, at: int, seen: Seen, streams: list[Tensor], axes: Tensor, scale: float
) -> tuple[list[Tensor], float]:
    """Fit a layer's feed-forward part; returns as ``_inherit_attention`` does."""
    middle, units, after = seen.judge("middle", at), seen.judge("units", at), seen.judge("layer", at + 1)
    dense, output = part.DenseReluDense, layer.output.dense
    chosen = (units.pow(2).mean(0) * output.weight.pow(2).sum(0)).topk(dense.wi.out_features).indices
    flat = seen.model(list(map(part.layer_norm, streams)))
    dense.wi.weight.copy_(ridge(flat, layer.intermediate.dense(middle)[:, chosen]))
    scale /= shrinking(middle + output(units), after)
    dense.wo.weight.copy_(ridge(dense.wi(flat).relu(), scale * after @ axes - seen.model(streams)))
    return list(map(part, streams)), scale
