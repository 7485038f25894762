"""The library timm: its `VisionTransformer`, or its `Beit` for networks with relative positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plsc_mae.export import tables
from plsc_mae.export.content import Content
from plsc_mae.export.targets.base import Code, Target, refuse
from plsc_mae.weights.write import write_file

WEIGHTS = "model.safetensors"


class Timm(Target):
    """timm's vision transformers."""

    name, title = "timm", "timm"
    parts = ("classifier", "encoder")
    packages = ("timm", "torch", "safetensors")
    install = "pip install timm safetensors"

    def write(self, content: Content, folder: Path) -> None:
        """Write the weights in timm's names; for the errors see `Target.write`."""
        encoder, classifier = content.encoder, content.classifier
        reason = tables.other_final_eps(content)
        if tables.has_relative_positions(encoder):
            reason = reason or tables.missing_feature(content)
        if classifier is not None and classifier.probe.startswith("attentive"):
            reason = reason or "its probe pools the tokens by attention"
        if reason:
            raise refuse(self, reason)
        if tables.has_relative_positions(encoder):
            table = tables.flat_table(content, "beit") | {"pos_embed": tables.with_class_row(encoder)}
            table = table if encoder.blocks[0].attn.q_bias is not None else tables.separate_biases(table)
        else:
            table = tables.join_biases(tables.flat_table(content, "timm"))
        if classifier is not None and not classifier.mean_pooled:  # its norm after the pooling equals one before
            table = {name.replace("fc_norm.", "norm.", 1): value for name, value in table.items()}
        write_file(folder / WEIGHTS, table, metadata={"format": "pt"})

    def code(self, content: Content) -> Code:
        """Return the code that builds the network from its class, loads the weights and runs it."""
        encoder, classifier = content.encoder, content.classifier
        relative = tables.has_relative_positions(encoder)
        kind, module = ("Beit", "beit") if relative else ("VisionTransformer", "vision_transformer")
        shown = ", ".join(f"{name}={value!r}" for name, value in self._arguments(content).items())
        load = [
            f"norm = partial(torch.nn.LayerNorm, eps={tables.norm_eps(encoder)})",
            f"model = {kind}({shown}, norm_layer=norm)",
        ]
        if tables.final_norm(content) is None:
            load.append("model.norm = torch.nn.Identity()")
        load += [f'model.load_state_dict(load_file(FOLDER / "{WEIGHTS}"))', "return model.eval()"]
        run = ["with torch.no_grad():"]
        if classifier is None:
            run += [
                "    tokens = model.forward_features(torch.from_numpy(images))",
                f"    pooled = tokens[:, {encoder.num_prefix_tokens}:].mean(1)",
                '    return {"tokens": tokens.numpy(), "pooled": pooled.numpy()}',
            ]
        else:
            run.append('    return {"logits": model(torch.from_numpy(images)).numpy()}')
        imports = (
            "import torch\nfrom functools import partial\nfrom safetensors.torch import load_file\n"
            f"from timm.models.{module} import {kind}"
        )
        return Code(imports, "\n".join(load), "\n".join(run))

    @staticmethod
    def _arguments(content: Content) -> dict[str, Any]:
        encoder, classifier = content.encoder, content.classifier
        height, width = encoder.img_size
        arguments: dict[str, Any] = {
            "img_size": height if height == width else (height, width),
            "patch_size": encoder.patch_size,
            "num_classes": len(content.classes),
            "global_pool": "avg" if classifier is not None and classifier.mean_pooled else "token",
            "embed_dim": encoder.embed_dim,
            "depth": len(encoder.blocks),
            "num_heads": encoder.blocks[0].attn.num_heads,
            "mlp_ratio": tables.mlp_ratio(encoder),
            "qkv_bias": True,
            "init_values": tables.initial_scale(encoder),
        }
        if tables.has_relative_positions(encoder):
            return arguments | {"use_rel_pos_bias": True}
        pooled = classifier is not None and classifier.mean_pooled
        if encoder.cls_token is None and not pooled:
            arguments["global_pool"] = ""
        registers = 0 if encoder.register_tokens is None else encoder.register_tokens.shape[1]
        return arguments | {
            "class_token": encoder.cls_token is not None,
            "reg_tokens": registers,
            "no_embed_class": encoder.prefix_positions == 0,
            "pos_embed": "learn" if encoder.pos_embed is not None else "none",
            "qk_norm": encoder.blocks[0].attn.q_norm is not None,
            "fc_norm": pooled and tables.final_norm(content) is not None,
        }


TARGET = Timm()
