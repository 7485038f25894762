"""An export as a whole: the network, the files that show its use, and the verdict of the check."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plsc_mae
from plsc_mae.config.export import ExportConfig
from plsc_mae.errors import ConfigError
from plsc_mae.export.content import Content, open_content
from plsc_mae.export.example import NAME, example_text
from plsc_mae.export.folder import DESCRIPTION, described, new_export, require_usable
from plsc_mae.export.targets import load_target
from plsc_mae.export.targets.base import Target
from plsc_mae.export.verify import Verdict, verify
from plsc_mae.files import MARK
from plsc_mae.names import as_json
from plsc_mae.wording import counted

CLASSES = "classes.txt"

logger = logging.getLogger(__name__)


class Export(NamedTuple):
    """A finished export: its content, the names of its files, the verdict of the check, and remarks."""

    content: Content
    files: list[str]
    verdict: Verdict
    remarks: list[str]


def export_network(config: ExportConfig) -> Export:
    """Write the network of a file for a target, with an example and a description, and check it in the target.

    Raises:
        CheckpointError: the file cannot be read, its network cannot be built, the conversion or the example fails, the
            outputs differ, or weights cannot be written.
        ConfigError: an option is missing or does not fit, the file or the target has no such part, the target cannot
            represent the network, or it needs a package that is not installed.
        DataError: the file of --classes cannot be used, or the folder cannot be written or has files that are not of an
            earlier export.
    """
    assert config.target is not None  # ExportConfig requires it
    target, path = load_target(config.target), Path(config.save_path)
    if missing := target.missing_package():
        raise ConfigError(missing)
    require_usable(path)
    content = open_content(config, target.parts)
    if (earlier := described(path).get("checkpoint", config.model_path)) != config.model_path:
        logger.warning(
            "the export of %s in %s will be replaced by that of %s; another --save_path keeps both",
            *(earlier, path, config.model_path),
        )
    with new_export(path) as folder:
        target.write(content, folder)
        (folder / NAME).write_text(example_text(target, content), encoding="utf-8")
        if content.classes:
            (folder / CLASSES).write_text("\n".join(content.classes) + "\n", encoding="utf-8")
        skipped = Verdict({}, 0.0, "--no_verify")
        verdict = verify(target, content, folder, config.tolerance) if config.verify else skipped
        files = sorted([*(file.name for file in folder.iterdir()), DESCRIPTION])
        entries = {**description(target, content, verdict, files), "checkpoint": config.model_path}
        (folder / DESCRIPTION).write_text(as_json(entries, indent=2) + "\n", encoding="utf-8")
    return Export(content, files, verdict, _remarks(target, content))


def _remarks(target: Target, content: Content) -> list[str]:
    """Return the remarks of the target and, if the images are not RGB, one about their preprocessing."""
    if content.pixel_format.is_rgb:
        return target.remarks(content)
    return [
        *target.remarks(content),
        f"images have {counted(content.pixel_format.channels, 'channel')}, and the preprocessing of libraries is for "
        "RGB: prepare arrays as example.py does, which reads .npy files, the formats of Pillow and, with the package "
        "tifffile, other TIFF files",
    ]


def description(target: Target, content: Content, verdict: Verdict, files: Sequence[str]) -> dict[str, Any]:
    """Return the content of export.json."""
    encoder, view = content.encoder, content.view
    return {
        "mark": MARK,
        "version": plsc_mae.__version__,
        "target": target.name,
        "part": content.part,
        "source": content.origin,
        "inputs": [
            {"name": each.name, "shape": ["B", *each.shape], "dtype": each.dtype, "content": each.note}
            for each in content.inputs
        ],
        "outputs": [{"name": name, "content": note} for name, note in content.outputs.items()],
        "encoder": {
            "width": encoder.embed_dim,
            "blocks": len(encoder.blocks),
            "heads": encoder.blocks[0].attn.num_heads,
            "patch_size": encoder.patch_size,
            "patches": list(encoder.grid),
            "tokens_before_patches": encoder.num_prefix_tokens,
        },
        "preprocessing": {
            "mean": list(content.mean),
            "std": list(content.std),
            "bands": list(content.pixel_format.bands),
            "pixel_range": None if content.pixel_format.range is None else list(content.pixel_format.range),
            "size": list(view.size),
            "shorter_side": view.shorter_side,
            "interpolation": view.interpolation,
        },
        "classes": len(content.classes),
        "verified": verdict._asdict(),
        "remarks": _remarks(target, content),
        "files": list(files),
    }
