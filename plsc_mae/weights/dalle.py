"""Finds and reads DALL-E's published encoder and decoder.

Supported are OpenAI's pickled modules, torch state dicts, PLSC's Paddle state dicts and safetensors files, all read by
the safe reader. The result has the tensor names of openai/DALL-E and fits the networks of `plsc_mae.models.dalle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file
from plsc_mae.weights.remote import fetch_advice

Array = npt.NDArray[np.generic]
Part = Literal["encoder", "decoder"]

SUFFIXES = (".pd", ".pkl", ".pth", ".pt", ".pdparams", ".safetensors")
SOURCES = (
    "OpenAI publishes https://cdn.openai.com/dall-e/encoder.pkl and decoder.pkl, PLSC "
    "https://vimer.bj.bcebos.com/CAE/encoder_weight.pd and decoder_weight.pd; for a test without a file, "
    "pre-train with `plsc-mae pretrain --discrete_vae_type random_init`"
)
KERNELS = ("blocks.input.w", "blocks.group_1.block_1.res_path.conv_1.w", "blocks.output.conv.w")
BLOCK = re.compile(r"blocks\.group_1\.block_(\d+)\.")


def read_dalle(path: str | Path, part: Part) -> dict[str, Array]:
    """Read the tensors of the encoder or the decoder of the discrete VAE.

    Args:
        path: the file, or a folder that contains it, such as one with encoder_weight.pd and decoder_weight.pd.
        part: "encoder" or "decoder".

    Returns:
        Arrays by the names of openai/DALL-E, such as `blocks.input.w`; kernels are [out, in, k, k].

    Raises:
        CheckpointError: no file or more than one file matches, the file cannot be read, or it contains something else,
            such as the other part.
    """
    file = find_dalle(path, part)
    tensors = _part_of(read_file(file).model, part)
    if any(name not in tensors or tensors[name].ndim != 4 for name in KERNELS):
        raise CheckpointError(f"{file} contains no DALL-E {part} (no kernels {', '.join(KERNELS)}); {SOURCES}")
    found = _part_by_shape(tensors)
    if found != part:
        raise CheckpointError(f"{file} contains DALL-E's {found}, expected the {part}; choose the {part}'s file")
    return tensors


def find_dalle(path: str | Path, part: Part) -> Path:
    """Return the file of one part: `path` itself if it is a file, else the matching file in the folder `path`.

    In a folder, a file with a published name is preferred to other files whose names contain the part.

    Raises:
        CheckpointError: the folder cannot be read, or no file or more than one file matches.
    """
    path = Path(path)
    if path.is_file():
        return path
    expected = " or ".join(_published_names(part))
    if not path.is_dir():
        advice = fetch_advice(path) or SOURCES
        raise CheckpointError(f"{path} does not exist; expected a folder with {expected}; {advice}")
    files = _candidates(path, part)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path} has more than one {part}: {names}; give the file instead of the folder")
    if not files:
        raise CheckpointError(f"no {part} in {path}; expected {expected}; {SOURCES}")
    return files[0]


def has_dalle(path: str | Path, part: Part) -> bool:
    """Return True if file names alone identify the file of the part: `path` itself, or one file in the folder `path`.

    A published name decides between several matching files in a folder. No file is read.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    return len(_candidates(Path(path), part)) == 1


def infer_sizes(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """Return the arguments of `DalleEncoder` or `DalleDecoder` that fit the tensors of `read_dalle`."""
    first, last = tensors["blocks.input.w"].shape, tensors["blocks.output.conv.w"].shape
    blocks = {match[1] for match in map(BLOCK.match, tensors) if match}
    if _part_by_shape(tensors) == "encoder":
        sizes = {"n_hid": first[0], "vocab_size": last[0], "in_chans": first[1]}
    else:
        sizes = {"n_init": first[0], "n_hid": last[1], "vocab_size": first[1], "out_chans": last[0] // 2}
    return sizes | {"blocks_per_group": len(blocks)}


def _published_names(part: Part) -> list[str]:
    """Return the file names of a part: PLSC's, then OpenAI's."""
    return [f"{part}_weight.pd", f"{part}.pkl"]


def _candidates(path: Path, part: Part) -> list[Path]:
    """Return the files whose names match the part, in the folder `path` or else `path` itself.

    A file with a published name excludes the others.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the permissions") from None
    for name in _published_names(part):
        if path / name in files:
            return [path / name]
    word = re.compile(rf"(?<![a-z]){part}(?![a-z])", re.IGNORECASE)
    return [file for file in files if file.suffix in SUFFIXES and file.is_file() and word.search(file.stem)]


def _part_of(tensors: Mapping[str, Array], part: Part) -> dict[str, Array]:
    """Return the tensors `PREFIX.blocks.*` under the names `blocks.*`; empty if there are no such tensors.

    If there are several prefixes, the one that ends in `part` is taken, else the first.
    """
    found: dict[Any, dict[str, Array]] = {}
    for name, array in tensors.items():
        prefix, blocks, rest = name.rpartition("blocks.")
        if blocks:
            found.setdefault(prefix.rstrip("."), {})[blocks + rest] = array
    own = [prefix for prefix in found if prefix.rpartition(".")[2] == part]
    return found[own[0]] if own else next(iter(found.values()), {})


def _part_by_shape(tensors: Mapping[str, npt.NDArray[Any]]) -> Part:
    """Return the part, judged by the first kernel: 7x7 over colors in the encoder, 1x1 over tokens in the decoder."""
    return "decoder" if tensors["blocks.input.w"].shape[2:] == (1, 1) else "encoder"
