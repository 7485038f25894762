"""`plsc-mae export`: writes a network for another program, with an example of its use, and checks it there."""

from __future__ import annotations

from pathlib import Path

from plsc_mae.config.export import ExportConfig
from plsc_mae.export.writing import export_network
from plsc_mae.parallel.world import World


def run(config: ExportConfig) -> None:
    """Export the network that the options name and print its files and the verdict of the check.

    Raises:
        CheckpointError: the file cannot be read, the conversion fails, or the outputs differ.
        ConfigError: the target cannot represent the network, or needs a package that is not installed.
        DataError: the folder cannot be written.
    """
    World("cpu")
    export = export_network(config)
    print(export.content.origin)
    size = " x ".join(map(str, export.content.encoder.img_size))
    print(f"{export.content.part} for images of {size}, any batch size")
    for name in export.files:
        print(Path(config.save_path) / name)
    for remark in export.remarks:
        print(f"note: {remark}")
    print(export.verdict)
