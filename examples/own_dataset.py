"""Train on a data set of your own, here photos named in a CSV table: any object with `len()` and `[]` will do.

Run `python own_dataset.py` in an empty folder. It draws 40 small photos first, so it needs no download.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

import plsc_mae

ENCODER = {"input_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
DECODER = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 3}


class PhotoTable:
    """The photos of a CSV table with the columns `file` and `kind`; an item is an image and the name of its class."""

    def __init__(self, table: Path) -> None:
        self.folder = table.parent
        with table.open(newline="") as file:
            self.rows = list(csv.DictReader(file))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        row = self.rows[index]
        return Image.open(self.folder / row["file"]).convert("RGB"), row["kind"]


def draw_photos(folder: Path) -> Path:
    """Draw 20 dark and 20 bright photos and return the table that names them."""
    rng, rows = np.random.default_rng(0), ["file,kind"]
    folder.mkdir(exist_ok=True)
    for i in range(40):
        kind, low = ("dark", 0) if i % 2 else ("bright", 128)
        Image.fromarray(rng.integers(low, low + 128, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{kind}")
    table = folder / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


photos = PhotoTable(draw_photos(Path("photos")))
short = {"batch_size": 10, "epochs": 2, "num_workers": 0, "quiet": True}
run = plsc_mae.train(photos, "own_dataset", model="mae_vit_tiny_patch16", **ENCODER, **DECODER, **short)
features = plsc_mae.embed(photos, model=run.checkpoint, num_workers=0)
print(f"loss {run.metrics['train_loss']:.3f}, features {features.shape} of {features.paths[0]} to {features.paths[-1]}")
tuned = plsc_mae.train(photos, "own_classifier", phase="finetune", eval_data=photos, model="vit_tiny_patch16",
                       finetune=run.checkpoint, blr=0.05, **ENCODER, **short)  # fmt: skip
print(f"accuracy {tuned.metrics['test_acc1']:.0f} % on its own training photos")
