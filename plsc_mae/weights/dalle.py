"""Finds and reads DALL-E's published encoder and decoder in every form they are passed around in.

A form is OpenAI's pickled modules, torch state dicts, PLSC's Paddle state dicts or safetensors; all go through the safe
reader. What comes out has the names of openai/DALL-E and fits the networks of `plsc_mae.models.dalle`.
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

Array = npt.NDArray[np.generic]
Part = Literal["encoder", "decoder"]

SUFFIXES = (".pd", ".pkl", ".pth", ".pt", ".pdparams", ".safetensors")
SOURCES = (
    "OpenAI publishes https://cdn.openai.com/dall-e/encoder.pkl and decoder.pkl, PLSC "
    "https://vimer.bj.bcebos.com/CAE/encoder_weight.pd and decoder_weight.pd; --discrete_vae_type random_init needs no "
    "file, for trying out"
)
KERNELS = ("blocks.input.w", "blocks.group_1.block_1.res_path.conv_1.w", "blocks.output.conv.w")
BLOCK = re.compile(r"blocks\.group_1\.block_(\d+)\.")


def read_dalle(path: str | Path, part: Part) -> dict[str, Array]:
    """Read the tensors of one part of the discrete VAE.

    Args:
        path: its file, or a folder that holds it, such as one with encoder_weight.pd and decoder_weight.pd.
        part: which of the two networks.

    Returns:
        Arrays by the names of openai/DALL-E, `blocks.input.w` and so on; kernels are [out, in, k, k].

    Raises:
        CheckpointError: nothing is found, more than one file could be meant, the file cannot be read, or it holds
            something else, such as the other part.
    """
    file = find_dalle(path, part)
    tensors = _part_of(read_file(file).model, part)
    if any(name not in tensors or tensors[name].ndim != 4 for name in KERNELS):
        raise CheckpointError(f"{file} holds no DALL-E {part} (no kernels {', '.join(KERNELS)}); {SOURCES}")
    found = _part_by_shape(tensors)
    if found != part:
        raise CheckpointError(f"{file} holds a DALL-E {found}, but the {part} is wanted; name the {part}'s file")
    return tensors


def find_dalle(path: str | Path, part: Part) -> Path:
    """Find the file of one part: `path` itself, or the file in that folder whose own name tells.

    Raises:
        CheckpointError: nothing is there, or more than one file could be meant.
    """
    path = Path(path)
    if path.is_file():
        return path
    expected = " or ".join(_published(part))
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; expected a folder with {expected}; {SOURCES}")
    files = _named(path, part)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path} has more than one {part}: {names}; name the file instead of the folder")
    if not files:
        raise CheckpointError(f"no {part} in {path}; expected {expected}; {SOURCES}")
    return files[0]


def has_dalle(path: str | Path, part: Part) -> bool:
    """Whether one file of that part is there, told by its name; nothing is read."""
    return len(_named(Path(path), part)) == 1


def infer_sizes(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """Read the constructor's sizes of `DalleEncoder` or `DalleDecoder` off the tensors that `read_dalle` returns."""
    first, last = tensors["blocks.input.w"].shape, tensors["blocks.output.conv.w"].shape
    blocks = {match[1] for match in map(BLOCK.match, tensors) if match}
    if _part_by_shape(tensors) == "encoder":
        sizes = {"n_hid": first[0], "vocab_size": last[0], "in_chans": first[1]}
    else:
        sizes = {"n_init": first[0], "n_hid": last[1], "vocab_size": first[1], "out_chans": last[0] // 2}
    return sizes | {"blocks_per_group": len(blocks)}


def _published(part: Part) -> list[str]:
    """PLSC's name and OpenAI's."""
    return [f"{part}_weight.pd", f"{part}.pkl"]


def _named(path: Path, part: Part) -> list[Path]:
    """Files that may hold a part, by their own names and not their folder's; a published name beats all others."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for name in _published(part):
        if path / name in files:
            return [path / name]
    word = re.compile(rf"(?<![a-z]){part}(?![a-z])", re.IGNORECASE)
    return [file for file in files if file.suffix in SUFFIXES and file.is_file() and word.search(file.stem)]


def _part_of(tensors: Mapping[str, Array], part: Part) -> dict[str, Array]:
    """Cut names down to `blocks...`; of a file with both parts take the wanted one's."""
    found: dict[Any, dict[str, Array]] = {}
    for name, array in tensors.items():
        prefix, blocks, rest = name.rpartition("blocks.")
        if blocks:
            found.setdefault(prefix.rstrip("."), {})[blocks + rest] = array
    own = [prefix for prefix in found if prefix.rpartition(".")[2] == part]
    return found[own[0]] if own else next(iter(found.values()), {})


def _part_by_shape(tensors: Mapping[str, npt.NDArray[Any]]) -> Part:
    """The encoder begins with a 7x7 kernel over colors, the decoder with a 1x1 kernel over the vocabulary."""
    return "decoder" if tensors["blocks.input.w"].shape[2:] == (1, 1) else "encoder"
