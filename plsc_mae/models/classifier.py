"""A ViT with a classification head, for fine-tuning and for probing frozen features.

B batch, L patches, D width, K classes. Originals: facebookresearch/mae models_vit.py and Atten4Vis/CAE
models/modeling_finetune.py.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import paddle
from paddle import Tensor, nn

from plsc_mae.models.cae import CrossAttention
from plsc_mae.models.layers import Linear, layer_norm, linear
from plsc_mae.models.vit import VisionTransformer

Probe = Literal["none", "standard", "attentive"]
BATCH_NORM_MOMENTUM = 0.1  # weight of the new batch, PyTorch's default
INIT_STD = 0.02


class BatchNorm(nn.Layer):
    """Batch normalization of [B, D] without scale and shift, whose running variance is unbiased as PyTorch's.

    Paddle's own follows the biased variance. Names of the buffers are PyTorch's.
    """

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("running_mean", paddle.zeros([dim]))
        self.register_buffer("running_var", paddle.ones([dim]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the batch in training, by the running statistics otherwise; in float32."""
        x = x.astype("float32")
        if not self.training:
            return (x - self.running_mean) / paddle.sqrt(self.running_var + self.epsilon)
        mean = x.mean(axis=0)
        variance = ((x - mean) ** 2).mean(axis=0)
        with paddle.no_grad():
            unbiased = variance * (len(x) / max(len(x) - 1, 1))
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.set_value(running * (1 - BATCH_NORM_MOMENTUM) + new * BATCH_NORM_MOMENTUM)
        return (x - mean) / paddle.sqrt(variance + self.epsilon)


class AttentiveBlock(nn.Layer):
    """Cross-attention from a query to all tokens; no residual, no MLP, no positions (CAE's attentive probe)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = (layer_norm(dim) for _ in range(3))
        self.cross_attn = CrossAttention(dim, num_heads)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        """[B, M, D] and [B, N, D] -> [B, M, D]."""
        attn = self.cross_attn
        return attn(
            linear(self.norm_q(query), attn.q.weight, attn.q_bias),
            linear(self.norm_k(x), attn.k.weight, None),
            linear(self.norm_v(x), attn.v.weight, attn.v_bias),
        )


class ImageClassifier(nn.Layer):
    """An encoder over whole images, pooling, and a linear head.

    Args:
        num_classes: K.
        global_pool: average the patch tokens and normalize the mean; else take the normalized class token.
        probe: "standard" puts a batch norm before the linear layer and freezes everything else; "attentive" pools
            all tokens with a learned query and freezes the encoder.
        init_scale: factor of the fresh head's weights (BEiT).
        rescale_init: divide the fresh residual projections of block i by sqrt(2 (i + 1)) (BEiT).
        encoder: arguments of `VisionTransformer`.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    forwarded_arguments = VisionTransformer.__init__.__annotations__

    def __init__(
        self,
        num_classes: int = 1000,
        global_pool: bool = True,
        probe: Probe = "none",
        init_scale: float = 1.0,
        rescale_init: bool = False,
        **encoder: Any,
    ) -> None:
        super().__init__()
        mean_pooled = global_pool and probe != "attentive"
        self.encoder = VisionTransformer(**{"final_norm": not mean_pooled, **encoder})
        dim, heads = self.encoder.embed_dim, self.encoder.blocks[0].attn.num_heads
        self.probe = probe
        self.mean_pooled = mean_pooled
        self.fc_norm: nn.Layer | None = layer_norm(dim) if mean_pooled else None
        self.head: nn.Layer = Linear(dim, num_classes)
        self._initialize(init_scale, rescale_init)
        if probe == "attentive":
            self.query_token = self.create_parameter([1, 1, dim], default_initializer=nn.initializer.Constant(0.0))
            self.attentive_blocks = nn.LayerList([AttentiveBlock(dim, heads)])
            self.fc_norm = BatchNorm(dim, 1e-5)
        elif probe == "standard":
            self.head = nn.Sequential(BatchNorm(dim, 1e-6), self.head)
        if probe != "none":
            self._freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        return self.head(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """What the head gets, [B, D]; the batch norm of the standard probe belongs to the head."""
        x = self.encoder.forward_features(images)
        if self.probe == "attentive":
            query = self.query_token.expand([x.shape[0], 1, x.shape[2]])
            return self.fc_norm(self.attentive_blocks[0](query, x)[:, 0])  # type: ignore[misc]
        if self.fc_norm is None:
            return x[:, 0]
        return self.fc_norm(x[:, 1:].mean(axis=1))

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens [B, 1 + L, D] of the encoder."""
        return self.encoder.forward_features(images)

    def _freeze(self) -> None:
        trained = ("head.", "query_token", "attentive_blocks.")
        for name, param in self.named_parameters():
            param.stop_gradient = not name.startswith(trained)

    @paddle.no_grad()
    def _initialize(self, init_scale: float, rescale_init: bool) -> None:
        """Fresh weights; they only matter where no checkpoint is loaded."""
        normal = nn.initializer.Normal(std=INIT_STD)
        for layer in self.sublayers():
            if isinstance(layer, Linear):
                normal(layer.weight)
        if rescale_init:
            for i, block in enumerate(self.encoder.blocks):
                for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                    weight.set_value(weight / math.sqrt(2.0 * (i + 1)))
        self.head.weight.set_value(self.head.weight * init_scale)
