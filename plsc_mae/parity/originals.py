"""The originals that a network can be compared with, and the process that runs their code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plsc_mae
from plsc_mae import weights
from plsc_mae.errors import ConfigError
from plsc_mae.models.registry import find_variant
from plsc_mae.parity.cases import NORM_EPS, CAECase, Case, MAECase
from plsc_mae.parity.oracle.mae import MAEOptions
from plsc_mae.parity.references.exchange import Message

HUGGINGFACE = "huggingface"
# What Atten4Vis/CAE builds whatever its options say (models/modeling_cae.py).
CAE_FIXED = {"img_size": (224, 224), "decoder_num_heads": 12, "decoder_num_classes": 8192}


@dataclass(frozen=True)
class Original:
    """Code that computes one of our networks.

    Attributes:
        title: what it is called.
        program: the module that runs it, see `parity.references`.
        dialect: of its weights.
        marker: file by which a checkout of it is known; empty for an installed package.
        kind: networks it may have.
        settings: what its program needs to know to build the network.
        obstacle: why it has no such network; empty if it has.
    """

    title: str
    program: str
    dialect: str
    marker: str
    kind: type[Case]
    settings: Callable[[Any], dict[str, Any]]
    obstacle: Callable[[Any], str]


def find_original(reference: str) -> Original:
    """The original that `--reference` names.

    Raises:
        ConfigError: it is neither `huggingface` nor a checkout of a known original.
    """
    if reference == HUGGINGFACE:
        return ORIGINALS[0]
    for original in ORIGINALS:
        if original.marker and (Path(reference) / original.marker).is_file():
            return original
    known = ", ".join(f"{original.title} ({original.marker})" for original in ORIGINALS if original.marker)
    raise ConfigError(f"--reference {reference} is no checkout of {known}; give its folder, or {HUGGINGFACE}")


def obstacle(original: Original, case: Case) -> str:
    """Why an original cannot compute what a case does; empty if it can."""
    if not isinstance(case, original.kind):
        return f"{original.title} has no network like {case.name}"
    reason = original.obstacle(case)
    return reason and f"{case.name} {reason}"


def ask(original: Original, case: Case, rates: Sequence[float], reference: str, python: str) -> Message:
    """Let the original compute what the case computes, with the same weights, batch and learning rates.

    Raises:
        ConfigError: the interpreter does not start, or the original's code fails.
    """
    config = case.config
    optimizer = {"rates": list(rates), "betas": config.opt_betas, "eps": config.opt_eps}
    settings = {**original.settings(case), **optimizer, "weight_decay": config.weight_decay}
    groups = {"weights": weights.export(case.model, original.dialect), "batch": dict(case.batch)}
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        request, answer = Path(folder) / "request.npz", Path(folder) / "answer.npz"
        Message(settings, groups).write(request)
        program = [python or sys.executable, "-m", f"plsc_mae.parity.references.{original.program}"]
        checkout = [reference] if original.marker else []
        _run([*program, str(request), str(answer), *checkout], original)
        return Message.read(answer)


def _run(command: list[str], original: Original) -> None:
    paths = [str(Path(plsc_mae.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"--python {command[0]}: {error.strerror}; name an interpreter that has torch") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"the code of {original.title} failed under {command[0]}: {last}; it needs an interpreter with torch and "
            "timm or transformers, see docs/parity.md"
        )


def _mae_sizes(case: MAECase) -> dict[str, Any]:
    """Constructor arguments of `MaskedAutoencoderViT`."""
    encoder, decoder = case.model.encoder, case.model.decoder
    kernel = encoder.patch_embed.proj.weight
    return {
        "img_size": encoder.img_size[0],
        "patch_size": kernel.shape[-1],
        "in_chans": kernel.shape[1],
        "embed_dim": kernel.shape[0],
        "depth": len(encoder.blocks),
        "num_heads": encoder.blocks[0].attn.num_heads,
        "decoder_embed_dim": decoder.embed.weight.shape[1],
        "decoder_depth": len(decoder.blocks),
        "decoder_num_heads": decoder.blocks[0].attn.num_heads,
        "mlp_ratio": encoder.blocks[0].mlp.fc1.weight.shape[1] / kernel.shape[0],
        "norm_pix_loss": case.model.norm_pix_loss,
    }


def _facebook_settings(case: MAECase) -> dict[str, Any]:
    return {"sizes": _mae_sizes(case), "mask_ratio": case.config.mask_ratio}


def _huggingface_settings(case: MAECase) -> dict[str, Any]:
    sizes = _mae_sizes(case)
    config = {
        "image_size": sizes["img_size"],
        "patch_size": sizes["patch_size"],
        "num_channels": sizes["in_chans"],
        "hidden_size": sizes["embed_dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": round(sizes["embed_dim"] * sizes["mlp_ratio"]),
        "decoder_hidden_size": sizes["decoder_embed_dim"],
        "decoder_num_hidden_layers": sizes["decoder_depth"],
        "decoder_num_attention_heads": sizes["decoder_num_heads"],
        "decoder_intermediate_size": round(sizes["decoder_embed_dim"] * sizes["mlp_ratio"]),
        "mask_ratio": case.config.mask_ratio,
        "norm_pix_loss": sizes["norm_pix_loss"],
        "layer_norm_eps": NORM_EPS,
    }
    return {"config": config}


def _cae_settings(case: CAECase) -> dict[str, Any]:
    config, model = case.config, case.model
    args = {
        "model_type": "cae",
        "regressor_depth": len(model.regressor.blocks),
        "decoder_depth": len(model.decoder.blocks),
        "decoder_embed_dim": model.mask_token.shape[-1],
    }
    return {
        "name": config.model,
        "args": args,
        "init_values": config.layer_scale_init_value,
        "align_loss_weight": config.dual_loss_weight,
    }


def _other_relative(case: MAECase) -> str:
    """Why facebookresearch/mae has no such network."""
    options = case.options()
    official = MAEOptions(
        num_heads=options.num_heads,
        decoder_num_heads=options.decoder_num_heads,
        mask_ratio=options.mask_ratio,
        pixel_norm="patch" if case.config.norm_pix_loss else "none",
    )
    height, width = case.model.encoder.img_size
    if options != official or height != width:
        return "is no network of facebookresearch/mae: it differs in more than its sizes, or its images are not square"
    return ""


def _other_sizes(case: CAECase) -> str:
    """Why Atten4Vis/CAE has no such network: it builds published encoders and fixed heads and classes only."""
    published = find_variant(case.config.model).arguments
    model, encoder = case.model, case.model.encoder
    found = {
        "patch_size": model.patch_size,
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": encoder.blocks[0].attn.num_heads,
        "img_size": tuple(encoder.img_size),
        "decoder_num_heads": model.regressor.blocks[0].cross_attn.num_heads,
        "decoder_num_classes": model.decoder.head.weight.shape[1],
    }
    for name, value in {**CAE_FIXED, **published}.items():
        if found[name] != value:
            return f"is no network of Atten4Vis/CAE: {name} is not {value}"
    if model.dual_path_ema > 0 or case.config.abs_pos_emb:
        return "is no network of Atten4Vis/CAE: it has no averaged encoder and no learned positions"
    return ""


ORIGINALS = (
    Original(
        "Hugging Face transformers", HUGGINGFACE, "huggingface", "", MAECase, _huggingface_settings, _other_relative
    ),
    Original(
        "facebookresearch/mae", "facebook", "facebook", "models_mae.py", MAECase, _facebook_settings, _other_relative
    ),
    Original("Atten4Vis/CAE", "cae", "cae", "models/modeling_cae.py", CAECase, _cae_settings, _other_sizes),
)
