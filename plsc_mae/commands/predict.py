"""`plsc-mae predict`: prints and saves the most probable classes of images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle.nn.functional as F
from paddle import Tensor

from plsc_mae.analysis.features import encode_dataset, require_finite_features
from plsc_mae.commands.pictures import find_pictures
from plsc_mae.config.tools import PredictConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.seeding import SampleKey, sample_rng
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.errors import DataError
from plsc_mae.files import atomic_replacement
from plsc_mae.loading.classifier import LoadedClassifier, open_classifier
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers


class Prediction(NamedTuple):
    """The most probable classes of an image, the best first. The field names are the keys in .json and .jsonl files.

    Names are written as by `plsc_mae.names.escape_name`.
    """

    image: str
    classes: list[str]
    indices: list[int]
    probabilities: list[float]


class Views:
    """A data set of transformed images. An unreadable image raises, because every image needs its own prediction."""

    def __init__(self, images: ImageList, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        sample = self.transform(open_image(self.images.path(key.index)), sample_rng(0, 0, key.index))
        return {"image": sample["image"], "skipped": np.asarray(0, np.int64)}


def run(config: PredictConfig) -> None:
    """Classify the images, print the classes and write them.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no classifier.
        DataError: there are no images, one cannot be decoded, or the file cannot be written.
    """
    world = World(config.device)
    images = find_pictures(config.img_path)
    trained = open_classifier(config)
    if world.is_main:
        print(trained.origin)
    predictions = predict(trained, images, world, config)
    for prediction in predictions:
        print(prediction.image)
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            print(f"  {100 * probability:6.2f} %  {name}")
    if config.save_path and world.is_main:
        save_predictions(Path(config.save_path), predictions)
        print(config.save_path)


def predict(trained: LoadedClassifier, images: ImageList, world: World, config: PredictConfig) -> list[Prediction]:
    """Classify every image, in order; all processes must call, and those other than the first return an empty list."""
    topk = min(config.topk, len(trained.classes))

    def best(pixels: Tensor) -> dict[str, Tensor]:
        probabilities, indices = F.softmax(trained.network(trained.normalize(pixels)), axis=-1).topk(topk)
        return {"probabilities": probabilities, "indices": indices.astype("float32")}  # exact up to 2 ** 24

    arrays = encode_dataset(
        best,
        Views(images, trained.transform),
        world,
        batch_size=config.batch_size,
        num_workers=0 if len(images) <= config.batch_size else count_workers(config.num_workers),
        title=images.root,
    )
    if not arrays:
        return []
    require_finite_features({"probabilities": arrays["probabilities"]}, config.model_path)
    rows = zip(arrays["indices"].astype(np.int64).tolist(), arrays["probabilities"].tolist(), strict=True)
    return [
        Prediction(images.name(i), [trained.classes[index] for index in indices], indices, probabilities)
        for i, (indices, probabilities) in enumerate(rows)
    ]


def save_predictions(path: Path, predictions: list[Prediction]) -> None:
    """Write predictions in the format of the suffix of `path`.

    .jsonl has one object per line and image, .json a list of these objects, .csv one row per image and class.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with atomic_replacement(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                writer = csv.writer(file)
                writer.writerow(["image", "rank", "class", "index", "probability"])
                for image, *columns in predictions:
                    rows = enumerate(zip(*columns, strict=True), start=1)
                    writer.writerows([image, rank, *row] for rank, row in rows)
                return
            lines = [json.dumps(prediction._asdict(), ensure_ascii=False) for prediction in predictions]
            if path.suffix == ".json":
                file.write("[\n" + ",\n".join(lines) + "\n]\n")
            else:
                file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
