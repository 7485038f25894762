"""`plsc-mae export`: writes a network for another program, with an example of its use, and checks its outputs there."""

from __future__ import annotations

from pathlib import Path

from plsc_mae.config.export import ExportConfig
from plsc_mae.export.writing import Export, export_network
from plsc_mae.parallel.world import World


def run(config: ExportConfig) -> None:
    """Export the network that the options name; raise as `export` does."""
    export(config)


def export(config: ExportConfig) -> Export:
    """Export the network that the options name, and print its files and the verdict of the check.

    Returns:
        The content, the names of the files, the verdict and remarks.
    """
    World("cpu")
    done = export_network(config)
    print(done.content.origin)
    size = " x ".join(map(str, done.content.encoder.img_size))
    print(f"{done.content.part} for images of {size}, any batch size")
    for name in done.files:
        print(Path(config.save_path) / name)
    for remark in done.remarks:
        print(f"note: {remark}")
    print(done.verdict)
    return done
