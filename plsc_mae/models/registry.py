"""The registered networks by name, as plain data: looking up a name does not import Paddle."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from plsc_mae.errors import ConfigError, flag

if TYPE_CHECKING:
    from paddle import nn

MAE = "plsc_mae.models.mae:MaskedAutoencoder"
CAE = "plsc_mae.models.cae:ContextAutoencoder"
SIMMIM = "plsc_mae.models.simmim:SimMIM"
CLASSIFIER = "plsc_mae.models.classifier:ImageClassifier"
SIZE_WORDS = {size[:n]: size for size in ("tiny", "small", "base", "large", "huge", "giant") for n in (1, len(size))}
SIZE_WORDS["ti"] = "tiny"
LEAST_RESEMBLANCE = 0.7  # of a suggested name; 2 is equality
OTHER_METHOD = 0.4  # resemblance lost by a network of another method
# Arguments of an encoder that options may override, in every network.
ENCODER_OPTIONS = ("in_chans", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path")


class Variant(NamedTuple):
    """A registered network: its class `network`, written `module:name`, and its constructor arguments.

    If several code bases use its name for different networks, `dialects` has the additional arguments of each code
    base; the first is the default.
    """

    network: str
    arguments: Mapping[str, Any]
    dialects: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def arguments_in(self, dialect: str = "") -> dict[str, Any]:
        """Return the constructor arguments of this variant in a dialect; "" selects the first dialect, if any.

        Raises:
            ConfigError: the variant does not exist in this dialect.
        """
        if not self.dialects and not dialect:
            return dict(self.arguments)
        chosen = dialect or next(iter(self.dialects))
        if chosen not in self.dialects:
            known = ", ".join(self.dialects) or "none: leave it out"
            raise ConfigError(f"unknown dialect '{dialect}' of this model; known: {known}")
        return {**self.arguments, **self.dialects[chosen]}


def _mae(patch_size: int, embed_dim: int, depth: int, num_heads: int) -> Variant:
    return Variant(MAE, {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads})


# facebookresearch/mae models_mae.py; tiny and small are ViT-Ti and ViT-S of DeiT with the same decoder.
_MAE_VARIANTS = {
    "mae_vit_tiny_patch16": _mae(16, 192, 12, 3),
    "mae_vit_small_patch16": _mae(16, 384, 12, 6),
    "mae_vit_base_patch16": _mae(16, 768, 12, 12),
    "mae_vit_large_patch16": _mae(16, 1024, 24, 16),
    "mae_vit_huge_patch14": _mae(14, 1280, 32, 16),
}
VARIANTS: dict[str, Variant] = _MAE_VARIANTS | {
    f"{name}_dec512d8b": _MAE_VARIANTS[name]
    for name in ("mae_vit_base_patch16", "mae_vit_large_patch16", "mae_vit_huge_patch14")
}
# The decoder of base, 512 wide with 8 blocks, is larger than the encoders of tiny and small.
SMALL_DECODER = {"decoder_embed_dim": 192, "decoder_depth": 4, "decoder_num_heads": 3}
VARIANTS |= {
    f"{name}_dec192d4b": Variant(MAE, {**_MAE_VARIANTS[name].arguments, **SMALL_DECODER})
    for name in ("mae_vit_tiny_patch16", "mae_vit_small_patch16")
}


# BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch (modeling_pretrain.py): shared arguments, then those of each.
# MAE-priv has a class token by default.
_BARE_MAE: dict[str, Any] = {
    "norm_pix_loss": True,
    "decoder_class_token": False,
    "k_bias": False,
    "round_down": "hidden",
    "torch_init": True,
}
_MAE_PRIV = {**_BARE_MAE, "positions": "row first", "pixel_norm": "layernorm", "channels_first": True}
_MAE_PYTORCH = {
    **_BARE_MAE,
    "positions": "sinusoid",
    "class_token": False,
    "bridge_bias": False,
    "pixel_norm": "channel",
    "pixel_mean": (0.485, 0.456, 0.406),
    "pixel_std": (0.229, 0.224, 0.225),
}
_PRIV_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": None}


def _bare_mae(
    patch_size: int, embed_dim: int, depth: int, num_heads: int, decoder: tuple[int, int, int] | None = None
) -> Variant:
    """Return a variant of MAE-priv; `decoder` (width, depth, heads) adds MAE-pytorch's dialect as the default."""
    sizes = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    dialects = {"mae_priv": {**_MAE_PRIV, **_PRIV_DECODER}}
    if decoder is not None:
        names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
        dialects = {"mae_pytorch": {**_MAE_PYTORCH, **dict(zip(names, decoder, strict=True))}, **dialects}
    return Variant(MAE, sizes, MappingProxyType(dialects))


VARIANTS |= {
    "pretrain_mae_tiny_patch16_224": _bare_mae(16, 192, 12, 3),
    "pretrain_mae_small_patch16_224": _bare_mae(16, 384, 12, 6, (192, 4, 3)),
    "pretrain_mae_base_patch16_224": _bare_mae(16, 768, 12, 12, (384, 4, 6)),
    "pretrain_mae_large_patch16_224": _bare_mae(16, 1024, 24, 16, (512, 8, 8)),
    "pretrain_mae_huge_patch14_224": _bare_mae(14, 1280, 32, 16),
    "pretrain_mae_giant_patch14_224": _bare_mae(14, 1664, 48, 16),
}


def _cae(embed_dim: int, depth: int, num_heads: int) -> Variant:
    return Variant(CAE, {"patch_size": 16, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads})


# Atten4Vis/CAE models/modeling_cae.py; regressor and decoder are 768 wide unless decoder_embed_dim says otherwise.
VARIANTS |= {
    "cae_tiny_patch16_224_8k_vocab": _cae(192, 12, 12),
    "cae_small_patch16_224_8k_vocab": _cae(384, 12, 12),
    "cae_base_patch16_224_8k_vocab": _cae(768, 12, 12),
    "cae_large_patch16_224_8k_vocab": _cae(1024, 24, 16),
}


def _vit(patch_size: int, embed_dim: int, depth: int, num_heads: int) -> Variant:
    sizes = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    return Variant(CLASSIFIER, {**sizes, "positions": "learned"})


def _cae_vit(img_size: int, embed_dim: int, depth: int, num_heads: int, layer_scale: float = 0.1) -> Variant:
    sizes = {"img_size": img_size, "patch_size": 16, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    options = {"k_bias": False, "positions": "row first", "relative_positions": "per block", "layer_scale": layer_scale}
    return Variant(CLASSIFIER, {**sizes, **options, "init_scale": 0.001, "rescale_init": True})


def _bare_vit(img_size: int, embed_dim: int, depth: int, num_heads: int) -> Variant:
    sizes = {"img_size": img_size, "patch_size": 16, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    options = {"k_bias": False, "class_token": False, "init_scale": 0.001}
    dialects: dict[str, Mapping[str, Any]] = {"mae_pytorch": {"positions": "sinusoid"}}
    dialects["mae_priv"] = {"positions": "row first", "fc_norm": True}
    return Variant(CLASSIFIER, {**sizes, **options}, MappingProxyType(dialects))


# facebookresearch/mae models_vit.py, each also under PLSC's name; tiny and small fit the encoders of mae_vit_tiny and
# mae_vit_small.
_VIT_VARIANTS = {
    "tiny_patch16": _vit(16, 192, 12, 3),
    "small_patch16": _vit(16, 384, 12, 6),
    "base_patch16": _vit(16, 768, 12, 12),
    "large_patch16": _vit(16, 1024, 24, 16),
    "huge_patch14": _vit(14, 1280, 32, 16),
}
VARIANTS |= {f"{family}_{name}": v for name, v in _VIT_VARIANTS.items() for family in ("vit", "maevit")}
# Atten4Vis/CAE models/modeling_finetune.py, with the relative positions that fine-tuning has on by default.
VARIANTS |= {
    "cae_tiny_patch16_224": _cae_vit(224, 192, 12, 12),
    "cae_small_patch16_224": _cae_vit(224, 384, 12, 12),
    "cae_base_patch16_224": _cae_vit(224, 768, 12, 12),
    "cae_base_patch16_384": _cae_vit(384, 768, 12, 12),
    "cae_large_patch16_224": _cae_vit(224, 1024, 24, 16),
    "cae_large_patch16_384": _cae_vit(384, 1024, 24, 16),
    "cae_large_patch16_512": _cae_vit(512, 1024, 24, 16),
}

# modeling_finetune.py of pengzhiliang/MAE-pytorch and BUPT-PRIV/MAE-priv, which share these names; MAE-priv's
# CLS models have class_token=True and global_pool=False in addition.
VARIANTS |= {
    "vit_small_patch16_224": _bare_vit(224, 384, 12, 6),
    "vit_base_patch16_224": _bare_vit(224, 768, 12, 12),
    "vit_base_patch16_384": _bare_vit(384, 768, 12, 12),
    "vit_large_patch16_224": _bare_vit(224, 1024, 24, 16),
    "vit_large_patch16_384": _bare_vit(384, 1024, 24, 16),
    "vit_large_patch16_512": _bare_vit(512, 1024, 24, 16),
}

# microsoft/SimMIM models/vision_transformer.py; only base is published.
_SIMMIM_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _simmim(network: str, sizes: tuple[int, int, int], **options: Any) -> Variant:
    names = ("embed_dim", "depth", "num_heads")
    return Variant(network, {"patch_size": 16, **dict(zip(names, sizes, strict=True)), **options})


_SIMMIM_VIT: dict[str, Any] = {
    **{"k_bias": False, "positions": "none", "relative_positions": "per block", "layer_scale": 0.1},
    **{"init_scale": 0.001, "rescale_init": True},
}
VARIANTS |= {f"pretrain_simmim_{n}_patch16_224": _simmim(SIMMIM, s) for n, s in _SIMMIM_SIZES.items()}
VARIANTS |= {f"simmim_{n}_patch16_224": _simmim(CLASSIFIER, s, **_SIMMIM_VIT) for n, s in _SIMMIM_SIZES.items()}


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names of registered networks that match a shell pattern."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def find_variant(name: str) -> Variant:
    """Return the registered network called `name`.

    Raises:
        ConfigError: the name is not registered.
    """
    if name not in VARIANTS:
        raise ConfigError(f"unknown model '{name}'{_hint(name, VARIANTS)}")
    return VARIANTS[name]


def require_network(name: str, network: str) -> None:
    """Check that the registered network `name` is of the class `network`, written `module:name`.

    Raises:
        ConfigError: the name is not registered, or belongs to another class.
    """
    found = VARIANTS[name].network if name in VARIANTS else ""
    if found == network:
        return
    classifies = network == CLASSIFIER
    purpose = "classification" if classifies else "pre-training"
    if found and (found == CLASSIFIER) == classifies:
        near = nearest_models(name, _of_networks(network)) or _of_networks(network)
        raise ConfigError(
            f"model {name} belongs to another method: leave {flag('method')} out, or use {' or '.join(near)}"
        )
    fitting = {other: variant for other, variant in VARIANTS.items() if (variant.network == CLASSIFIER) == classifies}
    kind = f"model {name} is not for {purpose}" if found else f"unknown model '{name}' for {purpose}"
    raise ConfigError(f"{kind}{_hint(name, fitting)}")


def _of_networks(network: str) -> list[str]:
    return [name for name in list_models() if VARIANTS[name].network == network]


def _hint(name: str, candidates: Iterable[str]) -> str:
    """Return the end of a message that refuses a model name: the nearest candidates, else all of them."""
    near = nearest_models(name, candidates)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; the networks are vision transformers: {', '.join(sorted(candidates))}"


def nearest_models(name: str, candidates: Iterable[str]) -> list[str]:
    """Return up to three candidates that resemble a model name of this or another library, best first.

    Names are compared by their words and by their letters, so `vit_mae_base`, `facebook/vit-mae-base` and `ViT-B/16`
    resemble `mae_vit_base_patch16`, as does `mae_vit_bas_patch16`. A size in the name excludes other sizes. Networks of
    CAE and SimMIM rank lower unless the name has that word.
    """
    wanted = _words(name)
    sizes = wanted & set(SIZE_WORDS.values())
    scores = {}
    for other in candidates:
        words = _words(other)
        if sizes <= words:
            letters = difflib.SequenceMatcher(None, "_".join(sorted(wanted)), "_".join(sorted(words))).ratio()
            stranger = bool(words & {"cae", "simmim"} - wanted)
            scores[other] = len(wanted & words) / len(wanted | words) + letters - OTHER_METHOD * stranger
    best = max(scores.values(), default=0.0)
    near = [other for other in scores if scores[other] >= max(LEAST_RESEMBLANCE, 0.8 * best)]
    return sorted(near, key=lambda other: -scores[other])[:3]


def _words(name: str) -> set[str]:
    """Split a model name into lower-case words, with the size and patch of `ViT-B/16` and `vit_b_16` spelled out."""
    text = re.sub(r"vit[-_]?(ti|[tsblhg])(?=[^a-z]|$)", r"vit_\1_", name.lower().rpartition("facebook/")[2])
    words = {SIZE_WORDS.get(word, word) for word in re.findall("[a-z0-9]+", text)}
    return {f"patch{word}" if word in ("14", "16") else word for word in words}


def arguments_of(name: str, dialect: str = "", **overrides: Any) -> dict[str, Any]:
    """Return the constructor arguments of a registered network, updated by the overrides that are not None.

    Raises:
        ConfigError: the name is not registered, or the dialect has no such network.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    return {**find_variant(name).arguments_in(dialect), **given}


def create_model(name: str, *, dialect: str = "", **overrides: Any) -> nn.Layer:
    """Build a registered network with fresh weights.

    Args:
        name: a registered name, see `list_models`.
        dialect: the code base, "mae_pytorch" or "mae_priv", for names of these two; "" for the name's default.
        overrides: further constructor arguments, which replace the variant's; those that are None are ignored.

    Raises:
        ConfigError: an unknown name, dialect or argument, or arguments that do not fit together.
    """
    variant = find_variant(name)
    module, _, attribute = variant.network.partition(":")
    network = getattr(importlib.import_module(module), attribute)
    given = {key: value for key, value in overrides.items() if value is not None}
    known = network.__init__.__annotations__ | getattr(network, "forwarded_arguments", {})
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{name} has no argument '{key}'; it takes {', '.join(k for k in known if k != 'return')}"
            )
    return network(**{**variant.arguments_in(dialect), **given})
