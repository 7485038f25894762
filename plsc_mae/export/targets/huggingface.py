"""Hugging Face Transformers: a folder for ViTMAE, ViT or BEiT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from plsc_mae.export import tables
from plsc_mae.export.content import Content
from plsc_mae.export.targets.base import Code, Target, refuse
from plsc_mae.weights import convert
from plsc_mae.weights.dialects import find_dialect
from plsc_mae.weights.dialects.base import renamed
from plsc_mae.weights.dialects.huggingface import config_of, sizes_of
from plsc_mae.weights.write import write_file

WEIGHTS = "model.safetensors"
_PROBLEM_TYPES = {"multilabel": "multi_label_classification", "regression": "regression"}  # by --task
_NETWORK = {
    "cls_token": "beit.embeddings.cls_token",
    "pos_embed": "beit.embeddings.position_embeddings",
    "patch_embed.proj": "beit.embeddings.patch_embeddings.projection",
    "blocks": "beit.encoder.layer",
    "norm": "beit.layernorm",
    "fc_norm": "beit.pooler.layernorm",
    "head": "classifier",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    f"attn.{tables.TABLE}": f"attention.attention.relative_position_bias.{tables.TABLE}",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
}


class HuggingFace(Target):
    """Transformers' ViTMAE, ViT and BEiT."""

    name, title = "huggingface", "Hugging Face Transformers"
    parts = ("classifier", "encoder", "reconstruction")
    packages = ("transformers", "torch")
    install = "pip install transformers torch"

    def write(self, content: Content, folder: Path) -> None:
        """Write weights, config.json and preprocessor_config.json; for the errors see `Target.write`."""
        encoder = content.encoder
        reason = tables.missing_feature(content) or tables.other_final_eps(content)
        if encoder.grid[0] != encoder.grid[1]:
            reason = reason or "its images are not square"
        if content.part == "reconstruction" and not content.decoder:
            reason = reason or "Transformers has no such decoder (--what encoder writes the encoder)"
        if reason or (tables.final_norm(content) is None):
            raise refuse(self, reason or "it has no layer norm behind the blocks")
        (folder / "config.json").write_text(json.dumps(self._settings(content), indent=2) + "\n", encoding="utf-8")
        view = content.view
        processor = {
            "image_processor_type": "BitImageProcessor",
            **{
                "do_convert_rgb": content.pixel_format.is_rgb,
                "do_resize": True,
                "size": {"shortest_edge": view.shorter_side},
                "resample": 3,
            },
            **{"do_center_crop": True, "crop_size": {"height": view.size[0], "width": view.size[1]}},
            **{"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
            **{"image_mean": list(content.mean), "image_std": list(content.std)},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
        if content.part == "reconstruction":
            convert.save(content.network, folder / WEIGHTS, "huggingface")
        else:
            table = _beit_table(content) if self._is_beit(content) else self._vit_table(content)
            write_file(folder / WEIGHTS, table, metadata={"format": "pt"})

    def code(self, content: Content) -> Code:
        """Return the code that loads the network from the folder and runs it."""
        architecture = self._settings(content)["architectures"][0]
        load = f"return {architecture}.from_pretrained(FOLDER).eval()"
        images = "torch.from_numpy(images)"
        if content.part == "reconstruction":
            body = [
                f"out = model({images}, noise=torch.from_numpy(noise))",
                'return {"pred": out.logits.numpy(), "mask": out.mask.numpy()}',
            ]
        elif content.part == "classifier":
            body = [f'return {{"logits": model({images}).logits.numpy()}}']
        else:
            patches = content.encoder.num_patches
            order = f", noise=torch.arange({patches}.0).expand(len(images), -1)"  # ViTMAE sorts the patches by noise
            body = [
                f"tokens = model({images}{'' if self._is_beit(content) else order}).last_hidden_state",
                'return {"tokens": tokens.numpy(), "pooled": tokens[:, 1:].mean(1).numpy()}',
            ]
        run = "\n".join(["with torch.no_grad():", *(f"    {line}" for line in body)])
        return Code(f"import torch\nfrom transformers import {architecture}", load, run)

    @staticmethod
    def _is_beit(content: Content) -> bool:
        """Return whether the network is written as BEiT, because ViT lacks its kind of blocks or its pooling."""
        if content.part == "reconstruction":
            return False
        pooled = content.classifier is not None and content.classifier.mean_pooled
        return pooled or not tables.has_plain_blocks(content.encoder)

    def _settings(self, content: Content) -> dict[str, Any]:
        """Return the content of config.json."""
        encoder, classifier = content.encoder, content.classifier
        sizes = sizes_of(encoder)
        names = dict(enumerate(content.classes))
        labels: dict[str, Any] = {
            "id2label": {str(i): name for i, name in names.items()},
            "label2id": {n: i for i, n in names.items()},
        }
        if content.kind.task in _PROBLEM_TYPES:
            labels["problem_type"] = _PROBLEM_TYPES[content.kind.task]
        if self._is_beit(content):
            kind = "BeitModel" if classifier is None else "BeitForImageClassification"
            fixed = {
                "architectures": [kind],
                "model_type": "beit",
                "use_absolute_position_embeddings": True,
                "use_relative_position_bias": tables.has_relative_positions(encoder),
                "use_mean_pooling": classifier is not None and classifier.mean_pooled,
                "use_mask_token": False,
                "layer_scale_init_value": tables.initial_scale(encoder) or 0.0,
                "drop_path_rate": 0.0,
                "hidden_act": "gelu",
            }
            return fixed | sizes | (labels if names else {})
        if classifier is not None:
            fixed = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_act": "gelu"}
            return fixed | {"qkv_bias": True} | sizes | labels
        return config_of(sizes | dict(content.decoder) | {"mask_ratio": _mask_ratio(content)}, bool(content.decoder))

    @staticmethod
    def _vit_table(content: Content) -> tables.Table:
        """Return the tensors of an encoder, or of a classifier of its class token, in the names of ViT and ViTMAE."""
        rules = find_dialect("huggingface")
        assert rules.encode is not None
        table = tables.flat_table(content, "facebook") | {"pos_embed": tables.with_class_row(content.encoder)}
        table = {name.replace("fc_norm.", "norm.", 1): value for name, value in table.items()}
        table = rules.encode(table, lambda _name, _width: 1)
        return {name: np.ascontiguousarray(value) for name, value in table.items()}


def _beit_table(content: Content) -> tables.Table:
    """Return the tensors of a network in the names of BEiT."""
    table = tables.separate_biases(tables.flat_table(content, "beit"))
    table["pos_embed"] = tables.with_class_row(content.encoder)
    if content.classifier is not None and not content.classifier.mean_pooled:
        table = {name.replace("fc_norm.", "norm.", 1): value for name, value in table.items()}
    split: tables.Table = {}
    for name, value in table.items():
        if name.endswith("attn.qkv.weight"):
            stem = renamed(name.removesuffix("attn.qkv.weight"), _NETWORK, {}) + "attention.attention"
            parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            split |= {f"{stem}.{part}.weight": np.ascontiguousarray(rows) for part, rows in parts}
        else:
            split[renamed(name, _NETWORK, _BLOCK)] = value
    return split


def _mask_ratio(content: Content) -> float:
    """Return a ratio with which ViTMAE hides `num_hidden` patches, although it rounds down the number of visible ones.

    Return 0 for another part, which hides no patches.
    """
    if content.part != "reconstruction":
        return 0.0
    patches, hidden = content.encoder.num_patches, content.num_hidden
    exact = hidden / patches
    return exact if int(patches * (1 - exact)) == patches - hidden else (hidden - 0.5) / patches


TARGET = HuggingFace()
