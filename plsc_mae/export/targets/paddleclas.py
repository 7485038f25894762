"""PaddleClas 2.6: the `MAE_vit_*` networks of foundation_vit.py, or the ViT of cae.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plsc_mae.export import tables
from plsc_mae.export.content import Array, Content
from plsc_mae.export.targets.base import Code, Target, refuse, traced_outputs, write_yaml
from plsc_mae.weights.write import write_file

WEIGHTS = "model.pdparams"
NORM_EPS = 1e-6  # fixed in the networks of cae.py
FOUNDATION_MODULE = "paddleclas.ppcls.arch.backbone.model_zoo.foundation_vit"
BEIT_STYLE_MODULE = "paddleclas.ppcls.arch.backbone.model_zoo.cae"
# (width, blocks, heads, patch size) of registered networks.
FOUNDATION = {
    (768, 12, 12, 16): "MAE_vit_base_patch16",
    (1024, 24, 16, 16): "MAE_vit_large_patch16",
}
BEIT_STYLE = {(768, 12, 12, 16): "cae_base_patch16_224", (1024, 24, 16, 16): "cae_large_patch16_224"}


class PaddleClas(Target):
    """PaddleClas's vision transformers."""

    name, title = "paddleclas", "PaddleClas"
    parts = ("classifier", "encoder")
    packages = ("paddleclas",)
    install = "pip install paddleclas==2.6.0 faiss-cpu"

    def write(self, content: Content, folder: Path) -> None:
        """Write the weights and a configuration, which names the network if PaddleClas registers one of its sizes.

        For the errors see `Target.write`.
        """
        encoder, norm = content.encoder, tables.final_norm(content)
        plain = _classifies_first_token(content) and tables.has_plain_blocks(encoder)
        reason = tables.missing_feature(content, eps=None if plain else NORM_EPS)
        reason = reason or tables.other_final_eps(content)
        if norm is None:
            reason = reason or "it has no layer norm behind the blocks"
        if encoder.grid[0] != encoder.grid[1]:
            reason = reason or "its images are not square"
        if reason:
            raise refuse(self, reason)
        write_file(folder / WEIGHTS, self._table(content, plain=plain))
        name, arguments = self._registered(content, plain=plain)
        heading = (
            "The architecture of a PaddleClas configuration; weights: -o Global.pretrained_model=FOLDER/model\n"
            f"Images: RGB, (pixels / 255 - mean) / std with mean {list(content.mean)}, std {list(content.std)}."
        )
        if not name:
            heading += "\nPaddleClas registers no network of these sizes; example.py builds it from its class."
        transforms = [
            {"DecodeImage": {"to_rgb": True, "channel_first": False}},
            {"ResizeImage": {"resize_short": content.view.shorter_side, "interpolation": "bicubic", "backend": "pil"}},
            {"CropImage": {"size": content.view.size[0]}},
            {"NormalizeImage": {"scale": 1 / 255, "mean": list(content.mean), "std": list(content.std), "order": ""}},
            {"ToCHWImage": None},
        ]
        arch = {"Arch": {"name": name, "class_num": len(content.classes) or 1000, **arguments}} if name else {}
        write_yaml(folder / "arch.yml", heading, arch | {"Infer": {"transforms": transforms}})

    def code(self, content: Content) -> Code:
        """Return the code that builds, loads and runs the network; for the outputs see `expected`."""
        plain = _classifies_first_token(content) and tables.has_plain_blocks(content.encoder)
        module = FOUNDATION_MODULE if plain else BEIT_STYLE_MODULE
        arguments = self._arguments(content, plain=plain)
        shown = repr(arguments)
        imports = f"import paddle\nfrom {module} import VisionTransformer"
        if not plain:
            imports += "\nfrom functools import partial"
            shown = shown[:-1] + f", 'norm_layer': partial(paddle.nn.LayerNorm, epsilon={NORM_EPS})}}"
        load = f"""\
arguments = {shown}
model = VisionTransformer(**arguments)
model.set_state_dict(paddle.load(str(FOLDER / "{WEIGHTS}")))
model.eval()
return model"""
        call = "model" if content.classifier is not None else "model.forward_features"
        name = "logits" if content.classifier is not None else "feature"
        run = f"""\
with paddle.no_grad():
    return {{"{name}": {call}(paddle.to_tensor(images)).numpy()}}"""
        return Code(imports, load, run)

    def expected(self, content: Content, inputs: Sequence[Array]) -> dict[str, Array]:
        """Compute the logits of a classifier, or the feature of an encoder: its class token after the norm."""
        outputs = traced_outputs(content.layer, inputs)
        if content.classifier is not None:
            return {"logits": outputs[0]}
        return {"feature": outputs[0][:, 0]}

    def remarks(self, content: Content) -> list[str]:
        """Return a remark if the network has no head, and one if the loader of registered networks does not fit it."""
        found = []
        plain = tables.has_plain_blocks(content.encoder)
        if content.classifier is None:
            found.append("the file has no head; the feature is the class token after the final norm")
        if _classifies_first_token(content) and not plain:
            found.append(
                "the loader of cae_*_patch16_224 renames norm.* to fc_norm.*, which a network of the class token "
                "lacks; load the weights by set_state_dict, as example.py does"
            )
        return found

    @staticmethod
    def _table(content: Content, *, plain: bool) -> tables.Table:
        table = tables.flat_table(content, "plsc_beit") | {"pos_embed": tables.with_class_row(content.encoder)}
        if not plain:
            return tables.separate_biases(table)
        # The norm of the class token is the same before and after the pooling.
        return {
            name.replace("head.", "head.fc_head.", 1).replace("fc_norm.", "norm.", 1): value
            for name, value in table.items()
        }

    @staticmethod
    def _registered(content: Content, *, plain: bool) -> tuple[str, dict[str, Any]]:
        """Return the name of the registered network of these sizes, and its further arguments.

        If PaddleClas registers no such network, return "" and the arguments of the class.
        """
        encoder = content.encoder
        sizes = (encoder.embed_dim, len(encoder.blocks), encoder.blocks[0].attn.num_heads, encoder.patch_size)
        name = (FOUNDATION if plain else BEIT_STYLE).get(sizes, "")
        own = {"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "qkv_bias", "model_name", "class_num"}
        arguments = PaddleClas._arguments(content, plain=plain)
        if name:
            arguments = {key: value for key, value in arguments.items() if key not in own}
            arguments |= {} if plain else {"enable_linear_eval": False, "model_key": "model", "model_ema": {}}
        return name, arguments

    @staticmethod
    def _arguments(content: Content, *, plain: bool) -> dict[str, Any]:
        encoder = content.encoder
        arguments: dict[str, Any] = {
            "img_size": encoder.img_size[0],
            **tables.common_arguments(encoder),
            "class_num": len(content.classes) or 1000,
        }
        if plain:
            fixed = {"model_name": FOUNDATION[768, 12, 12, 16], "conv_bias": True}
            return fixed | arguments | {"epsilon": tables.norm_eps(encoder)}
        return arguments | {
            "init_values": tables.initial_scale(encoder) or 0.0,
            "use_abs_pos_emb": True,
            "use_rel_pos_bias": tables.has_relative_positions(encoder),
            "use_mean_pooling": not _classifies_first_token(content),
        }


def _classifies_first_token(content: Content) -> bool:
    """Return whether the class token is classified; an encoder without head counts as such."""
    return content.classifier is None or not content.classifier.mean_pooled


TARGET = PaddleClas()
