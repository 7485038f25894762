"""What the layers of a network keep in memory from the forward pass to the backward pass, and need while they work.

Counted from what Paddle's autograd keeps: a linear layer its input, a layer norm its input and two numbers per token,
softmax its output, GELU its input, a product of tensors both, a sum nothing. B batch, N tokens, M queries, D width,
I = D inner width, F hidden width, H heads; with tensor parallelism I, F and H are a process's share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paddle import Tensor, nn

from plsc_mae.models.cae import RegressorBlock
from plsc_mae.models.layers import Attention, Block, CrossAttention, Linear, Mlp
from plsc_mae.models.rel_pos_bias import RelativePositionBias

FLOAT32, INDEX = 4, 8  # bytes of a number, of an index


class Conditions(NamedTuple):
    """How a process runs its part of a forward and backward pass.

    Attributes:
        batch: images B in one pass.
        low: bytes of a number where mixed precision computes in 16 bits; 4 without it.
        flash: whether attention without bias and dropout has a kernel that keeps no softmax weights.
        views: whether transposed, sliced and unbound tensors are views, as on GPU, and not copies.
        tensor_parallel: processes that share the heads and hidden columns of every block.
    """

    batch: int
    low: int = FLOAT32
    flash: bool = False
    views: bool = False
    tensor_parallel: int = 1

    @property
    def amp(self) -> bool:
        """Whether matrix products are computed in 16 bits."""
        return self.low < FLOAT32


class Step(NamedTuple):
    """A stretch of a pass after whose backward pass what it kept is gone.

    Attributes:
        kept: bytes that stay until then; its input counts here, its output does not.
        forward: most bytes while it is computed, what it keeps included.
        backward: most bytes while its gradients are computed, what it has kept included, weight gradients not.
    """

    kept: int
    forward: int
    backward: int


class Part(NamedTuple):
    """A piece of a network as memory sees it.

    Attributes:
        name: what a table calls it; pieces of one name are added up.
        steps: the stretches of its pass, in order.
        trained: trained parameters that a process has of it.
        frozen: the others.
        entry: bytes of its input, which is all that recompute keeps.
        block: whether it is a block, which recompute and pipelines go by.
        exchanged: bytes that tensor parallelism sums over processes in a forward pass; as many in the backward pass.
        backward: whether there is a backward pass through it.
        macs: multiply-accumulates for one image, by which pipelines are balanced.
    """

    name: str
    steps: tuple[Step, ...]
    trained: int = 0
    frozen: int = 0
    entry: int = 0
    block: bool = False
    exchanged: int = 0
    backward: bool = True
    macs: int = 0

    @property
    def kept(self) -> int:
        """Bytes that all its steps keep."""
        return sum(step.kept for step in self.steps)


def count(parameters: Iterable[Tensor], trained: bool) -> int:
    """Numbers in those parameters that are trained, or in the others."""
    return sum(int(p.size) for p in parameters if p.stop_gradient is not trained)


def shared_parameters(layer: nn.Layer) -> list[Tensor]:
    """Parameters below a layer that tensor parallelism cuts."""
    cut: list[Tensor | None] = []
    for part in layer.sublayers(include_self=True):
        if isinstance(part, Attention):
            cut += [part.qkv.weight, part.qkv.bias, part.q_bias, part.v_bias, part.proj.weight]
        elif isinstance(part, CrossAttention):
            cut += [part.q.weight, part.k.weight, part.v.weight, part.q_bias, part.v_bias, part.proj.weight]
        elif isinstance(part, Mlp):
            cut += [part.fc1.weight, part.fc1.bias, part.fc2.weight]
        elif isinstance(part, RelativePositionBias):
            cut.append(part.relative_position_bias_table)
    return [parameter for parameter in cut if parameter is not None]


def held(layer: nn.Layer, conditions: Conditions, *, trained: bool) -> int:
    """Parameters of a layer that one of the processes has."""
    return held_of(layer.parameters(), layer, conditions, trained=trained)


def held_of(parameters: Iterable[Tensor], layer: nn.Layer, conditions: Conditions, *, trained: bool) -> int:
    """Those among some parameters below a layer."""
    cut = {id(parameter) for parameter in shared_parameters(layer)}
    parts = (p for p in parameters if p.stop_gradient is not trained)
    return sum(int(p.size) // (conditions.tensor_parallel if id(p) in cut else 1) for p in parts)


def cast_weights(layer: nn.Layer, conditions: Conditions) -> int:
    """Bytes of the 16-bit copies of matrices that mixed precision makes and the backward pass needs."""
    if not conditions.amp:
        return 0
    cut = {id(parameter) for parameter in shared_parameters(layer)}
    matrices = [part.weight for part in layer.sublayers(include_self=True) if isinstance(part, Linear)]
    sizes = (int(w.size) // (conditions.tensor_parallel if id(w) in cut else 1) for w in matrices)
    return conditions.low * sum(sizes)


# ------------------------------------------------------------------------------------------------------- blocks


def block_part(name: str, block: Block, tokens: int, conditions: Conditions, rows: int | None = None) -> Part:
    """A pre-norm block over all tokens of an image, or one that computes only some `rows` of them."""
    frozen = all(parameter.stop_gradient for parameter in block.parameters())
    queries = tokens if rows is None else rows
    steps = (
        _self_attention(block, tokens, queries, conditions, sliced=rows is not None),
        _mlp(block, block.mlp, queries, conditions),
    )
    width = block.norm1.weight.size
    return Part(
        name,
        (_frozen(steps, FLOAT32 * conditions.batch * tokens * width),) if frozen else steps,
        held(block, conditions, trained=True),
        held(block, conditions, trained=False),
        entry=FLOAT32 * conditions.batch * tokens * width,
        block=True,
        exchanged=_exchanged(conditions, 2 * conditions.batch * queries * width),
        backward=not frozen,
        macs=block.macs(tokens),
    )


def regressor_part(name: str, block: RegressorBlock, hidden: int, patches: int, conditions: Conditions) -> Part:
    """A block of CAE's regressor: queries of the hidden patches attend to all."""
    batch, low, attn = conditions.batch, conditions.low, block.cross_attn
    width, inner = attn.q.weight.shape[0], attn.q.weight.shape[1] // conditions.tensor_parallel
    query, key = batch * hidden, batch * patches
    products, at_work, undone = _products(
        query, key, inner, attn.num_heads // conditions.tensor_parallel * batch * hidden * patches, conditions
    )
    stream = FLOAT32 * query * width
    # Two standardizations keep their inputs, the projections theirs; scaled weights are tensors of their own.
    base = 2 * stream + low * (query + 2 * key) * width + 3 * FLOAT32 * width * inner + cast_weights(attn, conditions)
    attention = Step(
        base + products + _scaling(block, query * width),
        base + at_work + 2 * FLOAT32 * key * width,
        base + undone + stream + FLOAT32 * key * width,
    )
    mlp = _mlp(block, block.mlp, hidden, conditions)
    return Part(
        name,
        (attention, mlp),
        held(block, conditions, trained=True),
        held(block, conditions, trained=False),
        entry=stream,
        block=True,
        exchanged=_exchanged(conditions, 2 * query * width),
        macs=block.macs(hidden, patches),
    )


def _exchanged(conditions: Conditions, numbers: int) -> int:
    return conditions.low * numbers if conditions.tensor_parallel > 1 else 0


def _frozen(steps: Iterable[Step], held_input: int) -> Step:
    """A part without a backward pass keeps nothing; its input lives while it works."""
    return Step(0, held_input + max(step.forward for step in steps), 0)


def _self_attention(block: Block, tokens: int, queries: int, conditions: Conditions, *, sliced: bool) -> Step:
    """Norm, attention and sum; `queries` of the tokens are asked for, behind sliced weights where not all are."""
    batch, low, attn, ways = conditions.batch, conditions.low, block.attn, conditions.tensor_parallel
    width, inner = attn.qkv.weight.shape[0], attn.qkv.weight.shape[1] // 3 // ways
    keys, asked, heads = batch * tokens, batch * queries, attn.num_heads // ways
    biased = attn.rel_pos_bias is not None
    products, at_work, undone = _products(
        asked, keys, inner, heads * batch * queries * tokens, conditions, biased=biased, dropped=attn.attn_drop_rate > 0
    )
    stream, normed = FLOAT32 * keys * width, low * keys * width
    slices = 0
    if sliced:
        normed += low * asked * width + INDEX * 2 * asked
        slices = 0 if conditions.views or conditions.amp else FLOAT32 * 3 * width * inner
    base = stream + 2 * FLOAT32 * keys + normed + slices + cast_weights(attn, conditions)
    kept = base + products + _scaling(block, asked * width)
    forward = base + at_work + (FLOAT32 * keys * width if conditions.amp else 0)
    return Step(kept, max(kept + FLOAT32 * asked * width, forward), base + FLOAT32 * asked * width + undone)


def _products(
    queries: int,
    keys: int,
    inner: int,
    weights: int,
    conditions: Conditions,
    *,
    biased: bool = False,
    dropped: bool = False,
) -> tuple[int, int, int]:
    """Bytes of the two products of attention with all that is between projections: kept, at work, at work backward.

    Args:
        queries: B*M.
        keys: B*N.
        inner: I.
        weights: B*H*M*N.
        conditions: of the pass.
        biased: whether a bias is added to the logits.
        dropped: whether softmax weights are dropped.
    """
    low, merged = conditions.low, conditions.low * queries * inner
    projected = low * (queries + 2 * keys) * inner
    if conditions.flash and not (biased or dropped):
        kept = projected + merged
        return kept, kept + projected + merged, kept + projected + merged
    # softmax and what it makes are float32 under mixed precision, and multiplied in 16 bits
    softmax = (FLOAT32 + (low if conditions.amp else 0)) * weights + (weights + low * weights if dropped else 0)
    storage = low * 3 * keys * inner if conditions.views else low * 2 * keys * inner
    kept = storage + merged + softmax + merged  # scaled q, and the input of the last projection
    logits = (FLOAT32 if conditions.amp or biased else low) * weights + (low * weights if biased else 0)
    at_work = max(3 * projected, projected + merged + logits + softmax + merged)
    undone = max(kept + logits + FLOAT32 * weights - (0 if conditions.views else merged), kept - softmax + projected)
    return kept, at_work, undone


def _mlp(block: Block | RegressorBlock, mlp: Mlp, queries: int, conditions: Conditions) -> Step:
    """Norm, MLP and sum."""
    rows, low = conditions.batch * queries, conditions.low
    width, hidden = mlp.fc1.weight.shape[0], mlp.fc1.weight.shape[1] // conditions.tensor_parallel
    stream, columns = FLOAT32 * rows * width, low * rows * hidden
    base = stream + 2 * FLOAT32 * rows + low * rows * width + 2 * columns
    if mlp.drop_rate:
        base += rows * width
    base += cast_weights(mlp, conditions)
    kept = base + _scaling(block, rows * width)
    normed = stream if conditions.amp else 0
    return Step(kept, kept + 2 * stream + normed, base + 2 * stream + columns)


def _scaling(block: Block | RegressorBlock, numbers: int) -> int:
    """Bytes that layer scale and stochastic depth keep of a branch."""
    return FLOAT32 * numbers * ((block.gamma_1 is not None) + (block.drop_path.rate > 0))
