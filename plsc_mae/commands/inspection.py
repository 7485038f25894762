"""The content of a weight file: its network, sizes and training target, and the commands that accept it.

Each method describes its pre-training network (`methods.contract.Method.describe`); `loading` infers the rest.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plsc_mae import weights
from plsc_mae.commands import usage_lines
from plsc_mae.commands.accepted_uses import refusals
from plsc_mae.config import FINETUNE, PretrainConfig
from plsc_mae.errors import CheckpointError, ConfigError, UserError
from plsc_mae.loading.classifier import load_classifier
from plsc_mae.loading.contents import CLASSIFIER, ENCODER, TOKENIZER, UNKNOWN, base_of, kind_of, method_of_kind
from plsc_mae.loading.encoder import infer_encoder_arguments
from plsc_mae.loading.training_config import training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.label_kinds import stored_kind
from plsc_mae.train.checkpoint.file import read_footer
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.dalle import Part, infer_sizes, read_dalle
from plsc_mae.weights.finite import count_not_finite
from plsc_mae.weights.folders import open_folder
from plsc_mae.weights.oneflow import is_oneflow
from plsc_mae.weights.reader import TORCH_STREAM_MAGIC


@dataclass
class Inspection:
    """Known facts about a weight file."""

    path: str  # the file
    format: str  # name of its file format
    bytes: int  # its size in bytes
    dialect: str  # naming of its tensors; empty if unknown
    kind: str  # "tokenizer", "classifier", "encoder", "unknown", or the `network` of a method
    holds: str = "no known network"  # the kind of network in words
    place: str = ""  # assumptions about the network's place in the file; empty if it is in the usual place
    # sizes of the network's parts, {part: {name: value}}
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    target: str = ""  # the prediction target of its training
    tensors: int = 0  # number of tensors of the network
    values: int = 0  # number of elements of these tensors
    dtypes: dict[str, int] = field(default_factory=dict)  # number of tensors of the network by type
    not_finite: dict[str, int] = field(default_factory=dict)  # {tensor: number of NaN and infinite values}
    # number of tensors outside the network by top-level key, such as "optimizer"
    beside: dict[str, int] = field(default_factory=dict)
    phase: str = ""  # training phase, such as "pretrain", that wrote the file; empty if not stored
    epoch: Any = None  # epoch of a training checkpoint; None if not stored
    options: dict[str, Any] = field(default_factory=dict)  # training options stored in the file
    unknown: list[str] = field(default_factory=list)  # sentences about properties that could not be found out
    # {use: command line} for the uses of the file, of which `accepted_uses` has tried some
    uses: dict[str, str] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)  # {use: the reason why the file is not accepted}


@dataclass(frozen=True)
class TensorLine:
    """One tensor of a file; `nan` counts NaN; `mean` and `std` are of its finite real values, None if it has none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    mean: float | None
    std: float | None
    nan: int


def inspect_file(
    source: str | Checkpoint, num_heads: int | None = None, decoder_num_heads: int | None = None, flags: str = ""
) -> Inspection:
    """Read a weight file and describe its content.

    Args:
        source: the file, or its content as `weights.read` returns it.
        num_heads: attention heads of the encoder, if the file does not determine them.
        decoder_num_heads: attention heads of the decoder, if the file does not determine them.
        flags: flags that chose the network in `source`, with leading spaces, to be appended to the printed commands.

    Raises:
        CheckpointError: the file cannot be read.
    """
    stored, problems = source if isinstance(source, Checkpoint) else weights.read(source), []
    stored = dataclasses.replace(stored, any_values=True)  # values that are not finite are counted
    path = str(stored.path)
    try:
        base = base_of(stored, num_heads)
    except ConfigError as error:
        base = dataclasses.replace(stored, dialect="")
        problems.append(str(error))
    options = stored.meta.get("args")
    found = Inspection(
        path=path,
        format=_format(Path(path)),
        bytes=sum(file.stat().st_size for file in (Path(path), *Path(path).rglob("*")) if file.is_file()),
        dialect=stored.dialect,
        kind=kind_of(base),
        tensors=len(stored.model),
        values=sum(value.size for value in stored.model.values()),
        dtypes=dict(Counter(str(value.dtype) for value in stored.model.values())),
        not_finite=_not_finite(stored),
        beside=_beside(stored),
        phase=str(stored.meta.get("phase", "")),
        epoch=stored.meta.get("epoch"),
        options=options if isinstance(options, dict) else {},
        unknown=problems,
    )
    if found.kind == TOKENIZER:
        _add_tokenizer(found)
    elif found.kind == UNKNOWN:
        _add_names(found, stored)
    else:
        found.place = stored.remark
        try:
            _add_network(found, base, stored, (num_heads, decoder_num_heads))
            _drop_refused(found, stored, base)
        except UserError as error:
            found.misfits["any use"] = str(error)
        _add_resume(found)
    _settle_heads(found, {"encoder": ("num_heads", num_heads), "decoder": ("decoder_num_heads", decoder_num_heads)})
    found.uses = {use: line if use in ("resume", "pretrain") else line + flags for use, line in found.uses.items()}
    if found.not_finite and found.uses:
        found.uses, found.misfits = {}, {"any use": "values that are not finite; take an earlier checkpoint of the run"}
    return found


def tensor_lines(stored: Checkpoint) -> Iterator[TensorLine]:
    """Yield a description of every tensor of a file."""
    for name, value in stored.tensors.items():
        is_number = value.dtype.kind in "iufb" and value.size > 0
        finite = value[np.isfinite(value)].astype(np.float64) if is_number else np.empty(0)
        mean, std = (float(finite.mean()), float(finite.std())) if finite.size else (None, None)
        nan = int(np.isnan(value).sum()) if value.dtype.kind in "fc" else 0
        yield TensorLine(name, value.shape, str(value.dtype), mean, std, nan)


# ------------------------------------------------------------------------------------------------ the file


def _format(path: Path) -> str:
    """Return the name of the format of a file that the reader has accepted."""
    if path.is_dir():
        return "OneFlow folder" if is_oneflow(path) else open_folder(path).kind
    with path.open("rb") as file:
        head = file.read(32)
    if head[8:9] == b"{":
        return "safetensors"
    if head[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            return "NumPy npz" if all(name.endswith(".npy") for name in archive.namelist()) else "torch, zip"
    if TORCH_STREAM_MAGIC.to_bytes(10, "little") in head:
        return "torch, before 1.6"
    try:
        read_footer(path)
    except CheckpointError:
        return "pickle of arrays, as paddle.save writes"
    return "checkpoint of plsc_mae, with checksum"


def _not_finite(stored: Checkpoint) -> dict[str, int]:
    counts = {name: count_not_finite(value) for name, value in stored.model.items()}
    return {name: count for name, count in counts.items() if count}


def _beside(stored: Checkpoint) -> dict[str, int]:
    """Count the tensors outside the network by top-level key; a key whose table has no tensors counts 0."""
    counts = Counter(path.partition("/")[0] for path in stored.tensors if "/" in path)
    network = stored.key.partition("/")[0]
    tables = {key: 0 for key, value in stored.meta.items() if isinstance(value, dict) and key != "args"}
    return {key: count for key, count in (tables | counts).items() if key != network}


# ------------------------------------------------------------------------------------------------ the network


def _add_tokenizer(found: Inspection) -> None:
    """Fill in the facts about a DALL-E dVAE, or about its encoder or decoder alone."""
    parts: tuple[Part, ...] = ("encoder", "decoder")
    for part in parts:
        try:
            found.sizes[part] = infer_sizes(read_dalle(found.path, part))
        except CheckpointError as error:
            found.misfits["pretrain"] = str(error)
    if not found.sizes:
        return
    found.misfits, found.dialect = {}, "dall_e"
    found.holds = " and ".join(found.sizes) + " of a DALL-E discrete VAE, the tokenizer of CAE"
    if "encoder" in found.sizes:
        found.uses |= usage_lines.tokenization(found.path)
    else:
        found.misfits["pretrain"] = (
            "pre-training needs the tokenizer's encoder; this part only draws pictures of tokens"
        )


def _add_names(found: Inspection, stored: Checkpoint) -> None:
    if stored.problem:
        found.holds = stored.problem.removeprefix("holds ")
        return
    if not found.dialect:
        found.unknown.append("the network of these tensors: no known dialect has their names")
    names = ", ".join(list(stored.model)[:3])
    if names:
        found.holds += f"; its tensors are called {names}{', ...' if len(stored.model) > 3 else ''}"


def _add_network(found: Inspection, base: Checkpoint, stored: Checkpoint, heads: tuple[int | None, int | None]) -> None:
    """Fill in the facts about a network of a known dialect; `heads` are those given by the user."""
    _add_encoder(found, base, heads[0])
    if found.kind == CLASSIFIER:
        _add_classifier(found, base, stored)
    elif found.kind == ENCODER:
        _add_encoder_only(found, base)
    else:
        _add_pretrained(found, base, heads[1])


def _add_encoder(found: Inspection, base: Checkpoint, num_heads: int | None) -> None:
    """Fill in the sizes of the encoder, with None for a number of heads that `_settle_heads` is to fill in."""
    try:
        sizes = infer_encoder_arguments(base, None, None)
    except ConfigError as error:
        if "--num_heads" not in str(error):
            raise
        sizes = {**infer_encoder_arguments(base, 1, None), "num_heads": None}
    has_table = sizes["positions"] not in ("none", "sinusoid") or sizes["relative_positions"] != "none"
    if not has_table and "input_size" not in found.options:
        found.unknown.append(f"the size of its images: {sizes['img_size'][0]} is assumed")
    if num_heads and not found.phase and num_heads != sizes["num_heads"]:
        sizes["num_heads"] = None
    sizes["layer_scale"] = bool(sizes["layer_scale"])  # a file does not store its initial value
    if sizes["prefix_positions"] in (None, int(sizes["class_token"])):
        del sizes["prefix_positions"]
    for name in ("qk_norm", "register_tokens"):
        if not sizes[name]:
            del sizes[name]
    found.sizes["encoder"] = sizes
    side = sizes["img_size"] if isinstance(sizes["img_size"], tuple) else (sizes["img_size"],) * 2
    sizes["grid"] = tuple(length // sizes["patch_size"] for length in side)


def _add_pretrained(found: Inspection, base: Checkpoint, decoder_num_heads: int | None) -> None:
    """Fill in the facts that a pre-training method reports about its network."""
    config = _config(found, base)
    method = method_of_kind(found.kind) if config is None else load_method(config.method)
    assert method is not None, found.kind
    described = method.describe(base, config)
    found.holds, found.target = described.holds, described.target
    found.sizes |= described.parts
    decoder = found.sizes.get("decoder", {})
    if decoder_num_heads and not found.phase and decoder.get("num_heads", decoder_num_heads) != decoder_num_heads:
        decoder["num_heads"] = None  # so that commands get it as a flag
    found.unknown += described.unknown
    if config is not None:
        found.uses |= usage_lines.reconstruction(found.path, found.sizes, described.reconstruct_flags)
    _add_uses(found, config)


def _add_encoder_only(found: Inspection, base: Checkpoint) -> None:
    found.holds = "encoder without a decoder"
    found.misfits["reconstruct"] = (
        "it has no decoder; facebookresearch/mae publishes whole autoencoders as mae_visualize_vit_large"
    )
    _add_uses(found, _config(found, base))


def _add_classifier(found: Inspection, base: Checkpoint, stored: Checkpoint) -> None:
    found.misfits["reconstruct"] = "it is a classifier, which has no decoder"
    heads = found.sizes["encoder"]["num_heads"] or 1  # the description does not depend on them
    try:
        trained = load_classifier(stored, num_heads=heads)
    except UserError as error:
        found.holds = "classifier"
        found.misfits["predict"] = str(error)
        return
    network = trained.network
    pooled = "the mean of the patch tokens" if network.mean_pooled else "the class token"
    kinds = {"none": "classifier", "standard": "linear probe", "raw": "linear probe"}
    kind = stored_kind(stored.meta, stored.path)
    found.holds = f"{kinds.get(network.probe, 'attentive probe')} of {network.num_classes} {kind.noun}"
    found.sizes["head"] = {"classes": network.num_classes, "probe": network.probe, "pooled": pooled}
    if network.probe.startswith("attentive"):
        found.sizes["head"]["pooled"] = "all tokens by attention"
    found.target = f"{kind.noun} of images, {'all' if kind.dense else 'one'} of {network.num_classes}"
    encoder = found.sizes["encoder"]
    found.uses |= usage_lines.prediction(found.path, encoder, has_average="model_ema" in found.beside)
    found.uses |= usage_lines.evaluation(found.path, encoder) | usage_lines.export(found.path, found.sizes)


def _config(found: Inspection, base: Checkpoint) -> PretrainConfig | None:
    """Infer the options of pre-training; on failure add the reason to `found.misfits` and return None."""
    try:
        return training_config(base, {})
    except UserError as error:
        found.misfits["reconstruct"] = str(error)
        return None


def _add_uses(found: Inspection, config: PretrainConfig | None) -> None:
    """Fill in the commands that accept a pre-trained encoder."""
    encoder = found.sizes["encoder"]
    if config is not None:
        found.uses |= usage_lines.training(found.path, config.method, encoder)
    elif encoder["k_bias"]:  # a plain ViT, like the encoder of the first method
        found.uses |= usage_lines.training(found.path, next(iter(FINETUNE)), encoder)
    found.uses |= usage_lines.evaluation(found.path, encoder) | usage_lines.export(found.path, found.sizes)


def _add_resume(found: Inspection) -> None:
    """Fill in the command that resumes from the file or, if another program wrote the optimizer state, a misfit."""
    if found.phase and found.format.startswith("checkpoint of plsc_mae"):
        found.uses |= usage_lines.resumption(found.path, found.phase)
    elif "optimizer" in found.beside:
        found.misfits["resume"] = (
            "its optimizer state is another program's; start a run from its weights with `plsc-mae pretrain "
            "--initial_weights` or `plsc-mae finetune --finetune`"
        )


def _drop_refused(found: Inspection, stored: Checkpoint, base: Checkpoint) -> None:
    """Move the uses for which `refusals` has a reason to `misfits`."""
    encoder, decoder = (found.sizes.get(part, {}).get("num_heads") or 1 for part in ("encoder", "decoder"))
    refused = refusals(stored, base, found.kind, found.uses, (encoder, decoder))
    found.uses = {use: line for use, line in found.uses.items() if use not in refused}
    found.misfits |= refused


def _settle_heads(found: Inspection, given: Mapping[str, tuple[str, int | None]]) -> None:
    """Fill in the numbers of heads that the file does not store: those of the user, or a note that they are unknown."""
    for part, (flag, heads) in given.items():
        if found.sizes.get(part, {}).get("num_heads", 0) is not None:
            continue
        if heads is None:
            found.unknown.append(f"the number of heads of the {part}: give it with --{flag}")
            continue
        found.sizes[part]["num_heads"] = heads
        found.uses = {use: line.replace(f" --{flag} N", f" --{flag} {heads}") for use, line in found.uses.items()}
