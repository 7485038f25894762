"""PaddleSeg 2.8: a backbone of `VisionTransformer` or `CAE`, for its segmentation models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle import nn

from plsc_mae.export import tables
from plsc_mae.export.content import Array, Content
from plsc_mae.export.targets.base import Code, Target, refuse, traced_outputs, write_yaml
from plsc_mae.weights.write import write_file

WEIGHTS = "backbone.pdparams"
MODULES = {
    "VisionTransformer": "paddleseg.models.backbones.vision_transformer",
    "CAE": "paddleseg.models.backbones.cae",
}
NORM_EPS = 1e-6  # `CAE` fixes it for the first norm of a block


class PaddleSeg(Target):
    """PaddleSeg's backbones."""

    name, title = "paddleseg", "PaddleSeg"
    parts = ("encoder",)
    packages = ("paddleseg",)
    install = "pip install paddleseg==2.8.0"

    def write(self, content: Content, folder: Path) -> None:
        """Write the weights and a configuration of backbone and transforms; for the errors see `Target.write`."""
        encoder = content.encoder
        plain = tables.has_plain_blocks(encoder)
        if reason := tables.missing_feature(content, eps=None if plain else NORM_EPS):
            raise refuse(self, reason)
        table = tables.flat_table(content, "plsc_beit") | {"pos_embed": tables.with_class_row(encoder)}
        write_file(folder / WEIGHTS, table if plain else tables.separate_biases(table))
        heading = (
            "The backbone of a PaddleSeg configuration; give the path of the weights as `pretrained`.\n"
            f"Images: RGB, (pixels / 255 - mean) / std with mean {list(content.mean)}, std {list(content.std)}."
        )
        size = list(encoder.img_size)
        mean, std = list(content.mean), list(content.std)
        settings = {
            "model": {
                "type": "LinearSegmenter",
                "backbone": self._backbone(content) | {"pretrained": WEIGHTS},
            },
            "val_dataset": {
                "transforms": [
                    {"type": "Resize", "target_size": size[::-1]},
                    {"type": "Normalize", "mean": mean, "std": std},
                ]
            },
        }
        write_yaml(folder / "backbone.yml", heading, settings)

    def code(self, content: Content) -> Code:
        """Return the code that builds, loads and runs the backbone; for the tokens that it returns see `expected`."""
        arguments = self._backbone(content)
        kind = arguments.pop("type")
        load = f"""\
model = {kind}(**{arguments!r}, pretrained=str(FOLDER / "{WEIGHTS}"))
model.eval()
return model"""
        run = """\
with paddle.no_grad():
    features, _ = model(paddle.to_tensor(images))
return {"patches": features[-1].numpy()}"""
        return Code(f"import paddle\nfrom {MODULES[kind]} import {kind}", load, run)

    def expected(self, content: Content, inputs: Sequence[Array]) -> dict[str, Array]:
        """Compute the patch tokens [B, L, D] that the backbone returns, after the final norm if it has one."""
        normed = self._backbone(content).get("final_norm")
        return {"patches": patch_tokens(content, inputs, normed=bool(normed))}

    def remarks(self, content: Content) -> list[str]:
        """Return a remark if the encoder has a final norm that the backbone leaves out."""
        if self._backbone(content).get("final_norm") or not isinstance(content.encoder.norm, nn.LayerNorm):
            return []
        return ["this backbone has no place for the encoder's final norm: its features are those of the last block"]

    @staticmethod
    def _backbone(content: Content) -> dict[str, Any]:
        """Return the arguments of the backbone, with its class as "type"."""
        encoder, norm = content.encoder, content.encoder.norm
        eps = tables.norm_eps(encoder)
        height, width = encoder.img_size
        arguments: dict[str, Any] = {
            "img_size": height if height == width else [height, width],
            **tables.common_arguments(encoder),
            "epsilon": eps,
        }
        if tables.has_plain_blocks(encoder):
            normed = isinstance(norm, nn.LayerNorm) and float(norm._epsilon) == eps
            return {"type": "VisionTransformer", **arguments, "final_norm": normed}
        more = {"init_values": tables.initial_scale(encoder)}
        return {"type": "CAE", **arguments, **more, "use_rel_pos_bias": tables.has_relative_positions(encoder)}


def patch_tokens(content: Content, inputs: Sequence[Array], *, normed: bool) -> Array:
    """Compute the patch tokens [B, L, D] of the last block, with or without the final norm."""
    encoder = content.encoder
    layer = _Patches(encoder, normed=normed)
    layer.eval()
    return traced_outputs(layer, inputs)[0]


class _Patches(nn.Layer):
    def __init__(self, encoder: nn.Layer, *, normed: bool) -> None:
        super().__init__()
        self.encoder, self.normed = encoder, normed

    def forward(self, images: Any) -> list[Any]:
        tokens = self.encoder.forward_features(images) if self.normed else self.encoder.forward_layers(images)[-1]
        return [tokens[:, self.encoder.num_prefix_tokens :]]


TARGET = PaddleSeg()
