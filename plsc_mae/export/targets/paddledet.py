"""PaddleDetection 2.6: its `VisionTransformer` backbone, with or without the feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn

from plsc_mae.export import tables
from plsc_mae.export.content import Array, Content
from plsc_mae.export.targets.base import Code, Target, refuse, write_yaml
from plsc_mae.export.targets.paddleseg import patch_tokens
from plsc_mae.weights.write import write_file

WEIGHTS = "backbone.pdparams"
NORM_EPS = 1e-6  # fixed for the first norm of a block
PYRAMID_PATCHES = (8, 16)  # patch sizes for which the backbone builds a feature pyramid


class PaddleDetection(Target):
    """PaddleDetection's backbone."""

    name, title = "paddledet", "PaddleDetection"
    parts = ("encoder",)
    packages = ("ppdet",)
    install = "pip install paddledet==2.6.0"

    def write(self, content: Content, folder: Path) -> None:
        """Write the weights and a configuration of backbone and transforms; for the errors see `Target.write`."""
        if reason := tables.missing_feature(content, eps=NORM_EPS):
            raise refuse(self, reason)
        table = tables.separate_biases(tables.flat_table(content, "plsc_beit"))
        write_file(folder / WEIGHTS, table | {"pos_embed": tables.with_class_row(content.encoder)})
        heading = (
            "The backbone of a PaddleDetection configuration; give the path of the weights as `pretrained`.\n"
            "`img_size` is (height, width) of the padded training images; tables of relative positions do not fit\n"
            "another size, so export with --input_size HEIGHT WIDTH."
        )
        depth, patch = len(content.encoder.blocks), content.encoder.patch_size
        last = [max(1, depth * (i + 1) // 4) - 1 for i in range(4)]
        pyramid = {"with_fpn": patch in PYRAMID_PATCHES, "num_fpn_levels": 4, "out_indices": last}
        settings = {
            "VisionTransformer": self._arguments(content) | pyramid | {"pretrained": WEIGHTS},
            "TestReader": {
                "sample_transforms": [
                    {"Decode": {}},
                    {"Resize": {"target_size": list(content.encoder.img_size), "keep_ratio": False}},
                    {"NormalizeImage": {"mean": list(content.mean), "std": list(content.std), "is_scale": True}},
                    {"Permute": {}},
                ]
            },
        }
        write_yaml(folder / "backbone.yml", heading, settings)

    def code(self, content: Content) -> Code:
        """Return the code that builds, loads and runs the backbone; for the map that it returns see `expected`."""
        arguments = self._arguments(content)
        last = len(content.encoder.blocks) - 1
        load = f"""\
arguments = {arguments!r}
model = VisionTransformer(**arguments, with_fpn=False, out_indices=[{last}], pretrained=str(FOLDER / "{WEIGHTS}"))
model.eval()
return model"""
        run = """\
with paddle.no_grad():
    (features,) = model({"image": paddle.to_tensor(images)})
return {"map": features.numpy()}"""
        imports = "import paddle\nfrom ppdet.modeling.backbones.vision_transformer import VisionTransformer"
        return Code(imports, load, run)

    def expected(self, content: Content, inputs: Sequence[Array]) -> dict[str, Array]:
        """Compute the map [B, D, rows, columns] of the patch tokens, without the final norm."""
        tokens = patch_tokens(content, inputs, normed=False)
        rows, columns = content.encoder.grid
        return {"map": np.ascontiguousarray(tokens.reshape(len(tokens), rows, columns, -1).transpose(0, 3, 1, 2))}

    def remarks(self, content: Content) -> list[str]:
        """Return a remark if the encoder has a final norm, which the backbone leaves out."""
        normed = isinstance(content.encoder.norm, nn.LayerNorm)
        return ["this backbone leaves out the final norm: its features are those of the blocks"] * normed

    @staticmethod
    def _arguments(content: Content) -> dict[str, Any]:
        encoder = content.encoder
        return {
            "img_size": list(encoder.img_size),
            **tables.common_arguments(encoder),
            "epsilon": NORM_EPS,
            "init_values": tables.initial_scale(encoder),
            "use_rel_pos_bias": tables.has_relative_positions(encoder),
            # The file has the whole table. A learned one must be a parameter, a fixed one must stay fixed.
            "use_abs_pos_emb": encoder.positions == "learned",
            "use_sincos_pos_emb": encoder.positions != "learned",
        }


TARGET = PaddleDetection()
