"""A ViT with a classification head, for fine-tuning and for probing frozen features.

B batch, L patches, D width, K outputs, for example classes. Originals: facebookresearch/mae models_vit.py;
modeling_finetune.py of Atten4Vis/CAE, BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.attention import attention
from plsc_mae.models.layers import (
    INIT_STD,
    LAYER_NORM_EPS,
    CrossAttention,
    Linear,
    attention_macs,
    copy_to_group,
    initializes,
    layer_norm,
    linear,
    merge_heads,
    split_heads,
)
from plsc_mae.models.vit import VisionTransformer

Probe = Literal["none", "standard", "raw", "attentive", "attentive_no_parameter"]
POOLED_BATCH_NORM_EPS = 1e-5  # of the batch norm that replaces `fc_norm`; in the standard head it is 1e-6
BATCH_NORM_MOMENTUM = 0.1  # weight of the current batch in the running statistics, PyTorch's default


class BatchNorm(nn.Layer):
    """Batch normalization of [B, D] without scale and shift, with an unbiased running variance as in PyTorch.

    Paddle's own layer averages the biased variance. The buffers have PyTorch's names.
    """

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("running_mean", paddle.zeros([dim]))
        self.register_buffer("running_var", paddle.ones([dim]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [B, D]; returns float32 [B, D].

        In training, the statistics are those of this process's batch, and the running statistics are updated; otherwise
        the running statistics are used.
        """
        x = x.astype("float32")
        if not self.training:
            return (x - self.running_mean) / paddle.sqrt(self.running_var + self.epsilon)
        mean = x.mean(axis=0)
        variance = ((x - mean) ** 2).mean(axis=0)
        with paddle.no_grad():
            unbiased = variance * (len(x) / max(len(x) - 1, 1))
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                # Other in-place operations are lost in traced programs.
                paddle.assign(running * (1 - BATCH_NORM_MOMENTUM) + new * BATCH_NORM_MOMENTUM, output=running)
        return (x - mean) / paddle.sqrt(variance + self.epsilon)


class AttentiveBlock(nn.Layer):
    """Cross-attention from a query to all tokens; no residual, no MLP, no positions (CAE's attentive probe)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = (layer_norm(dim) for _ in range(3))
        self.cross_attn = CrossAttention(dim, num_heads)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        """Attend from `query` [B, M, D] to tokens `x` [B, N, D]; returns [B, M, D]."""
        attn = self.cross_attn
        return attn(
            linear(copy_to_group(attn.exchange, self.norm_q(query)), attn.q.weight, attn.q_bias),
            linear(copy_to_group(attn.exchange, self.norm_k(x)), attn.k.weight, None),
            linear(copy_to_group(attn.exchange, self.norm_v(x)), attn.v.weight, attn.v_bias),
        )


class ParallelHeads(nn.Layer):
    """Copies of a head's linear layer, all behind the head's batch norm if it has one, for a sweep of learning rates.

    An `ImageClassifier` with such a head returns a list of logits, one entry per copy, in place of a tensor.

    Args:
        head: the head of a probe, a linear layer with or without a batch norm before it.
        count: number of copies.
    """

    def __init__(self, head: nn.Layer, count: int) -> None:
        super().__init__()
        self.norm, last = (head[0], head[1]) if isinstance(head, nn.Sequential) else (nn.Identity(), head)
        self.linears = nn.LayerList([Linear(*last.weight.shape) for _ in range(count)])
        self._start_from(last)

    @initializes
    def _start_from(self, layer: nn.Layer) -> None:
        for copy in self.linears:
            copy.set_state_dict(layer.state_dict())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a list with the logits [B, K] of each copy for the head's input x [B, D]."""
        x = self.norm(x)
        return [layer(x) for layer in self.linears]


class ImageClassifier(nn.Layer):
    """A classifier of whole images: an encoder, pooling, and a linear head.

    Args:
        num_classes: number of outputs K.
        global_pool: whether to classify the mean of the patch tokens. Otherwise the first token is classified: the
            class token, if there is one.
        probe: "none" trains the whole network; all others train the head alone, "attentive" also its pooling.
            "standard" has a batch norm in the head; "raw" has one in place of any layer norm behind the blocks
            (MAE-priv); "attentive" pools all normalized tokens with a learned query, "attentive_no_parameter" with the
            first token as query. These two ignore `global_pool` and have a batch norm after the pooling.
        init_scale: factor of the head's initial weights (BEiT).
        rescale_init: divide the initial residual projections of block i by sqrt(2 (i + 1)) (BEiT).
        linear_depth: number of attentive blocks of the probe "attentive", applied to the query in turn.
        fc_norm: whether the layer norm follows the pooling instead of preceding it. None means yes if patches are
            averaged; MAE-priv has it behind the pooling for the class token too.
        encoder: arguments of `VisionTransformer`.

    Raises:
        ConfigError: arguments that do not fit together, such as `fc_norm` for a probe that has a batch norm instead.
    """

    forwarded_arguments = VisionTransformer.__init__.__annotations__

    def __init__(
        self,
        num_classes: int = 1000,
        global_pool: bool = True,
        probe: Probe = "none",
        init_scale: float = 1.0,
        rescale_init: bool = False,
        linear_depth: int = 1,
        fc_norm: bool | None = None,
        **encoder: Any,
    ) -> None:
        super().__init__()
        attentive = probe in ("attentive", "attentive_no_parameter")
        if fc_norm is not None and (attentive or probe == "raw"):
            raise ConfigError(f"fc_norm has no effect with probe '{probe}', which has a batch norm there; leave it out")
        self.probe, self.num_classes = probe, num_classes
        self.mean_pooled = global_pool and not attentive
        norm_pooled = self.mean_pooled if fc_norm is None else fc_norm
        norm_tokens = attentive or not (norm_pooled or probe == "raw")
        self.encoder = VisionTransformer(**{"final_norm": norm_tokens, **encoder})
        dim, self.num_heads = self.encoder.embed_dim, self.encoder.blocks[0].attn.num_heads
        norm_eps = encoder.get("norm_eps", LAYER_NORM_EPS)
        self.fc_norm: nn.Layer | None = layer_norm(dim, norm_eps) if norm_pooled else None
        self.head: nn.Layer = Linear(dim, num_classes)
        if probe == "attentive":
            self.query_token = self.create_parameter([1, 1, dim], default_initializer=nn.initializer.Constant(0.0))
            self.attentive_blocks = nn.LayerList([AttentiveBlock(dim, self.num_heads) for _ in range(linear_depth)])
        self._initialize(init_scale, rescale_init)
        if attentive or probe == "raw":
            self.fc_norm = BatchNorm(dim, POOLED_BATCH_NORM_EPS)
        elif probe == "standard":
            self.head = nn.Sequential(BatchNorm(dim, 1e-6), self.head)
        if probe != "none":
            self._freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for images [B, C, H, W]."""
        return self.classify(self.pool(images))

    def pool(self, images: Tensor) -> Tensor:
        """Return the pooled tokens [B, D] of images [B, C, H, W], before `fc_norm`.

        Of all probes, only "attentive" trains parameters that affect the result.
        """
        return self._pool(self.encoder.forward_features(images))

    def finish(self, tokens: Tensor) -> Tensor:
        """Return logits [B, K] for the output [B, N, D] of the last block."""
        return self.classify(self._pool(self.encoder.norm(tokens)))

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits [B, K] for pooled tokens [B, D]."""
        return self.head(self._normed(pooled))

    def pooled(self, images: Tensor) -> Tensor:
        """Return the head's input [B, D] for images [B, C, H, W]; the head includes the standard probe's batch norm."""
        return self._normed(self.pool(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode images: [B, C, H, W] -> tokens [B, T + L, D], T = `encoder.num_prefix_tokens`."""
        return self.encoder.forward_features(images)

    def forward_macs(self) -> tuple[int, int]:
        """Return the multiply-accumulates of one image's forward pass as (encoder, attentive blocks and head).

        The attention of the probe "attentive_no_parameter", which trains nothing, is counted with the encoder.
        """
        encoder = self.encoder
        tokens = encoder.num_patches + encoder.num_prefix_tokens
        frozen = encoder.forward_macs(tokens)
        if self.probe == "attentive_no_parameter":
            frozen += 2 * tokens * encoder.embed_dim
        heads = (layer for layer in self.head.sublayers(include_self=True) if isinstance(layer, Linear))
        trained = sum(layer.weight.size for layer in heads)
        for block in getattr(self, "attentive_blocks", ()):
            attn = block.cross_attn
            trained += attn.q.weight.size + attn.proj.weight.size + attention_macs(attn, 1, tokens)
            trained += tokens * (attn.k.weight.size + attn.v.weight.size)
        return frozen, int(trained)

    @paddle.no_grad()
    def reorder_outputs(self, order: Sequence[int]) -> None:
        """Reorder the outputs of a linear head in place: output i becomes the former output order[i]."""
        index = paddle.to_tensor(list(order), dtype="int64")
        self.head.weight.set_value(paddle.index_select(self.head.weight, index, axis=1))
        self.head.bias.set_value(paddle.index_select(self.head.bias, index))

    @paddle.no_grad()
    def reset_head(self, std: float) -> None:
        """Initialize the head's linear layer again: weights normal with `std`, bias 0.

        Some originals do this after loading a checkpoint, with `std` 0.01 for probes and 2e-5 for fine-tuning.
        """
        head = self.head[1] if isinstance(self.head, nn.Sequential) else self.head
        nn.initializer.Normal(std=std)(head.weight)
        head.bias.zero_()

    def _normed(self, pooled: Tensor) -> Tensor:
        return pooled if self.fc_norm is None else self.fc_norm(pooled)

    def _pool(self, x: Tensor) -> Tensor:
        """Pool tokens: [B, N, D] -> [B, D]."""
        if self.probe == "attentive":
            query = self.query_token.expand([x.shape[0], 1, x.shape[2]])
            for block in self.attentive_blocks:
                query = block(query, x)
            return query[:, 0]
        if self.probe == "attentive_no_parameter":
            q, kv = split_heads(x[:, :1], self.num_heads), split_heads(x, self.num_heads)
            return merge_heads(attention(q, kv, kv))[:, 0]
        return x[:, self.encoder.num_prefix_tokens :].mean(axis=1) if self.mean_pooled else x[:, 0]

    def _freeze(self) -> None:
        trained = ("head.", "query_token", "attentive_blocks.")
        for name, param in self.named_parameters():
            param.stop_gradient = not name.startswith(trained)

    @initializes
    def _initialize(self, init_scale: float, rescale_init: bool) -> None:
        """Initialize the weights of all linear layers."""
        normal = nn.initializer.Normal(std=INIT_STD)
        for layer in self.sublayers():
            if isinstance(layer, Linear):
                normal(layer.weight)
        if rescale_init:
            for i, block in enumerate(self.encoder.blocks):
                for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                    weight.set_value(weight / math.sqrt(2.0 * (i + 1)))
        self.head.weight.set_value(self.head.weight * init_scale)
