"""The parts of whole networks, in the order of a forward pass, with what stands between their blocks.

B batch, L patches, K visible, M hidden, D width, P patch size, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from paddle import Tensor, nn

from plsc_mae.config import TrainingConfig
from plsc_mae.config.mae import AutoencoderOptions
from plsc_mae.errors import ConfigError
from plsc_mae.masking import num_visible
from plsc_mae.methods.base import Task
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.dalle import STRIDE, DalleEncoder
from plsc_mae.models.layers import Linear
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.plan.activation_memory import FLOAT32, Conditions, Part, Step, block_part, count, held_of, regressor_part


class Anatomy(NamedTuple):
    """A training pass taken apart.

    Attributes:
        parts: of the network, in the order of the forward pass.
        batch: bytes of a batch on the device.
        during_forward: bytes of pixels, positions and the like that live until the forward pass ends.
        preparing: bytes that making the targets needs for a while, before the forward pass.
        apart: frozen numbers that belong to no part, as a tokenizer's.
        largest: numbers in the largest trained parameter; an update works on one at a time.
    """

    parts: tuple[Part, ...]
    batch: int
    during_forward: int = 0
    preparing: int = 0
    apart: int = 0
    largest: int = 0


def dissect(task: Task, config: TrainingConfig, conditions: Conditions) -> Anatomy:
    """Take a pass of a task apart.

    Raises:
        ConfigError: the task's network is of none of the known kinds.
    """
    model = task.model
    if isinstance(model, MaskedAutoencoder):
        anatomy = _autoencoder(model, num_hidden(task, config), conditions)
    elif isinstance(model, ContextAutoencoder):
        anatomy = _context_autoencoder(model, num_hidden(task, config), getattr(task, "target", None), conditions)
    elif isinstance(model, ImageClassifier):
        anatomy = _classifier(model, conditions)
    else:
        raise ConfigError(f"no plan is known for a {type(model).__name__}")
    largest = max((int(p.size) for p in model.parameters() if not p.stop_gradient), default=0)
    return anatomy._replace(largest=largest)


def num_hidden(task: Task, config: TrainingConfig) -> int:
    """Patches that a pre-training task hides of every image."""
    model = task.model
    if isinstance(model, MaskedAutoencoder):
        patches, ratio = model.encoder.num_patches, cast(AutoencoderOptions, config).mask_ratio
        return patches - num_visible(patches, ratio, model.round_down)
    return int(cast(Any, task).num_masked)


def _autoencoder(model: MaskedAutoencoder, hidden: int, conditions: Conditions) -> Anatomy:
    batch, low, encoder, decoder = conditions.batch, conditions.low, model.encoder, model.decoder
    patches, first = encoder.num_patches, encoder.num_prefix_tokens
    visible, decoded = patches - hidden, patches + decoder.num_prefix_tokens
    pixels = FLOAT32 * batch * patches * decoder.pred.weight.shape[1]
    inner, width = decoder.embed.weight.shape
    seen = batch * (visible + decoder.num_prefix_tokens)
    bridge = Step(
        low * seen * inner + _casts(conditions, decoder.embed),
        low * seen * inner + 3 * FLOAT32 * batch * decoded * width,
        low * seen * inner + 3 * FLOAT32 * batch * decoded * width,
    )
    *whole, last = decoder.blocks
    parts = [
        *_encoder(encoder, visible + first, visible, conditions),
        _part("decoder", [bridge]),
        *(block_part("decoder", block, decoded, conditions) for block in whole),
        block_part("decoder", last, decoded, conditions, rows=hidden),
        _with(
            _part(
                "decoder",
                [_norm(batch * hidden, width, conditions), _pixel_loss(batch * hidden, decoder.pred, conditions)],
            ),
            *(_outside(decoder, decoder.blocks), decoder, conditions),
        ),
    ]
    uint8, noise = pixels // FLOAT32, FLOAT32 * batch * patches
    return Anatomy(tuple(parts), uint8 + noise, during_forward=2 * pixels, preparing=2 * pixels)


def _context_autoencoder(
    model: ContextAutoencoder, hidden: int, target: nn.Layer | None, conditions: Conditions
) -> Anatomy:
    batch, encoder, decoder = conditions.batch, model.encoder, model.decoder
    patches, width = encoder.num_patches, model.mask_token.shape[-1]
    visible, stream = patches - hidden, FLOAT32 * batch * model.mask_token.shape[-1]
    context = Step(2 * visible * stream, 4 * visible * stream, 4 * visible * stream)
    if model.bridge is not None:
        inputs = conditions.low * batch * (visible + 1) * model.bridge.weight.shape[0]
        context = Step(*(inputs + (visible + 1) * stream + bytes for bytes in context))
    alignment = encoder if model.alignment_encoder is None else model.alignment_encoder
    aside = _encoder(alignment, hidden + 1, hidden, conditions)
    most = max(step.forward for part in aside for step in part.steps) + FLOAT32 * batch * (hidden + 1) * width
    own = [] if model.alignment_encoder is None else alignment.parameters()
    between = _outside(model, encoder, model.regressor, decoder, alignment)
    parts = [
        *_encoder(encoder, visible + 1, visible, conditions),
        _with(_part("regressor", [context]), between, model, conditions),
        *(regressor_part("regressor", block, hidden, patches, conditions) for block in model.regressor.blocks),
        _with(
            _part("regressor", [_norm(batch * hidden, width, conditions)]),
            *(model.regressor.norm.parameters(), model, conditions),
        ),
        *(block_part("decoder", block, hidden, conditions) for block in decoder.blocks),
        _with(
            _part("decoder", _token_head(decoder, batch * hidden, conditions)),
            *(_outside(decoder, decoder.blocks), decoder, conditions),
        ),
        # what the encoder makes of the hidden patches is computed last, without gradients
        _with(_part("alignment", [Step(hidden * stream, most, 4 * hidden * stream)]), own, model, conditions),
    ]
    pixels = FLOAT32 * batch * patches * _kernel_inputs(encoder)
    tokenizer = getattr(target, "tokenizer", None)
    return Anatomy(
        tuple(parts),
        pixels // FLOAT32 + (pixels // FLOAT32 // 4 if tokenizer else pixels),
        # images, patches, positions, queries, the regressor's context
        during_forward=2 * pixels + (2 * hidden + 3 * visible) * stream,
        preparing=_tokenizing(tokenizer, encoder.grid, conditions) if tokenizer else 3 * pixels,
        apart=count(tokenizer.parameters(), trained=False) if tokenizer else 0,
    )


def _classifier(model: ImageClassifier, conditions: Conditions) -> Anatomy:
    encoder, batch, low = model.encoder, conditions.batch, conditions.low
    tokens, width = encoder.num_patches + encoder.num_prefix_tokens, encoder.embed_dim
    pooled = FLOAT32 * batch * width
    head = Step(2 * pooled, 4 * pooled + FLOAT32 * batch * tokens * width, 4 * pooled)
    steps = [head]
    for block in getattr(model, "attentive_blocks", ()):
        attn = block.cross_attn
        inner, all_tokens = attn.proj.weight.shape[0] // conditions.tensor_parallel, batch * tokens
        kept = FLOAT32 * all_tokens * (width + 4) + 2 * low * all_tokens * (width + inner)
        kept += _casts(conditions, *attn.sublayers())
        steps.insert(-1, Step(kept, kept + 2 * FLOAT32 * all_tokens * width, kept + 3 * low * all_tokens * inner))
    if model.probe == "none":
        steps[-1] = Step(*(bytes + FLOAT32 * batch * tokens * width for bytes in head))
    logits = 2 * FLOAT32 * batch * model.num_classes
    steps.append(Step(logits, 2 * logits, 2 * logits))
    images = FLOAT32 * batch * encoder.num_patches * _kernel_inputs(encoder)
    parts = (
        *_encoder(encoder, tokens, encoder.num_patches, conditions),
        _with(_part("head", steps), _outside(model, encoder), model, conditions),
    )
    return Anatomy(parts, images + images // 4, during_forward=images, preparing=3 * images)


# ---------------------------------------------------------------------------------------- between blocks


def _encoder(encoder: VisionTransformer, tokens: int, embedded: int, conditions: Conditions) -> list[Part]:
    """Embedding, blocks and final norm of an encoder that sees so many tokens of an image."""
    batch, width = conditions.batch, encoder.embed_dim
    kernel = encoder.patch_embed.proj.weight
    frozen = all(parameter.stop_gradient for parameter in encoder.parameters())
    pixels = conditions.low * batch * embedded * _kernel_inputs(encoder)
    copied = conditions.low * kernel.size if conditions.amp else 0
    stream = FLOAT32 * batch * tokens * width
    embedding = Step(pixels + copied, 2 * pixels + copied + 3 * stream, pixels + copied + 2 * stream)
    norm = _norm(batch * tokens, width, conditions)
    return [
        _with(
            _part("encoder", [embedding], backward=not frozen),
            *(_outside(encoder, encoder.blocks), encoder, conditions),
        ),
        *(block_part("encoder", block, tokens, conditions) for block in encoder.blocks),
        _part("encoder", [norm], backward=not frozen),
    ]


def _kernel_inputs(encoder: VisionTransformer) -> int:
    """Numbers in a patch, P*P*C."""
    return int(math.prod(encoder.patch_embed.proj.weight.shape[1:]))


def _part(name: str, steps: Sequence[Step], *, backward: bool = True) -> Part:
    """A part that is no block and has no parameters."""
    return Part(name, tuple(steps if backward else (Step(0, step.forward, 0) for step in steps)), backward=backward)


def _with(part: Part, parameters: Sequence[Tensor], network: nn.Layer, conditions: Conditions) -> Part:
    """A part with parameters of a network."""
    trained, frozen = (held_of(parameters, network, conditions, trained=kind) for kind in (True, False))
    return part._replace(trained=trained, frozen=frozen)


def _norm(rows: int, width: int, conditions: Conditions) -> Step:
    """A layer norm that keeps its input; what follows keeps its output."""
    stream = FLOAT32 * rows * width
    return Step(stream, 2 * stream, 3 * stream)


def _pixel_loss(rows: int, pred: Linear, conditions: Conditions) -> Step:
    """A linear layer and the squared error of what it predicts."""
    inputs, outputs = conditions.low * rows * pred.weight.shape[0], FLOAT32 * rows * pred.weight.shape[1]
    kept = inputs + outputs + _casts(conditions, pred)
    return Step(kept, kept + 3 * outputs, kept + 3 * outputs)


def _token_head(decoder: nn.Layer, rows: int, conditions: Conditions) -> list[Step]:
    """The final norm, logits over the vocabulary, and their softmax, which the cross entropy keeps."""
    width, classes = decoder.head.weight.shape
    inputs, logits = conditions.low * rows * width, FLOAT32 * rows * classes
    low = conditions.low * rows * classes
    kept = inputs + logits + _casts(conditions, decoder.head)
    norm = [] if decoder.norm is None else [_norm(rows, width, conditions)]
    forward = kept + low + (logits if conditions.amp else 0)
    return [*norm, Step(kept, forward, kept + logits + (low if conditions.amp else 0))]


def _tokenizing(tokenizer: DalleEncoder, grid: tuple[int, int], conditions: Conditions) -> int:
    """Bytes of the widest place of DALL-E's encoder: its first group, at the image's full size; on CPU image by image.

    Input, output and two that become it; behind it the logits, on GPU of the whole batch at once.
    """
    width, vocabulary = tokenizer.blocks["input"].w.shape[0], tokenizer.blocks["output"]["conv"].w.shape[0]
    batch, number = (conditions.batch, 2) if conditions.views else (1, FLOAT32)
    tokens = batch * grid[0] * grid[1]
    return max(4 * number * tokens * STRIDE**2 * width, FLOAT32 * tokens * vocabulary)


def _casts(conditions: Conditions, *layers: nn.Layer) -> int:
    return conditions.low * sum(int(layer.weight.size) for layer in layers) if conditions.amp else 0


def _outside(layer: nn.Layer, *inner: nn.Layer) -> list[Tensor]:
    """Parameters of a layer that are not in others below it."""
    inside = {id(parameter) for part in inner for parameter in part.parameters()}
    return [parameter for parameter in layer.parameters() if id(parameter) not in inside]
