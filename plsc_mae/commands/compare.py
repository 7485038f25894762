"""`plsc-mae compare`: prints the accuracies of frozen features: raw pixels, random weights and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from plsc_mae.analysis.features import Encode, TokenFeatures, pixel_features
from plsc_mae.analysis.few_shot import Choices, Estimate, few_shot_accuracies, make_choices
from plsc_mae.analysis.knn import COMPARED_K, default_ks, knn_accuracy
from plsc_mae.analysis.labeled import EncodedLists, encode_labeled
from plsc_mae.analysis.linear import linear_accuracy, standardize
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.features import CompareConfig
from plsc_mae.data.classes import log_class_warnings
from plsc_mae.data.imagefolder import ImageList, find_images, find_validation
from plsc_mae.errors import DataError
from plsc_mae.files import result_replacement
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.weights.reader import read_file

HEAD = "| features | k-NN (k = "
Source = tuple[Encode, tuple[int, int], str]  # an encoder, the (h, w) of its images, and its checkpoint


@dataclass(frozen=True)
class Row:
    """A row of the table: a kind of features and its top-1 accuracies in percent.

    For random weights, `knn` and `linear` have one accuracy per seed; for other features, they have a single one. `few`
    has lists of accuracies by number or share of labels, with one accuracy for each such seed and choice of labels.
    """

    features: str
    knn: list[float] = field(default_factory=list)
    linear: list[float] = field(default_factory=list)
    few: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        few = "".join(f" {Estimate.of(values)} |" for values in self.few.values())
        return f"| {self.features} | {_cell(self.knn)} | {_cell(self.linear)} |{few}"

    def entry(self) -> dict[str, Any]:
        """Return the row as an object for a JSON file, without `few` if that is empty."""
        return {name: value for name, value in asdict(self).items() if name != "few" or value}


def run(config: CompareConfig) -> int:
    """Print the table and, with --save_path, write it to a file.

    An error or Ctrl-C prints the rows that are done. The line below the table has the accuracy of always answering the
    most frequent class.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: a checkpoint cannot be read, or its network cannot be used.
        DataError: images, labels or the file of --stats cannot be used, or the result cannot be written.
        ConfigError: an option does not fit a checkpoint, the images or this machine, or a package is not installed.
    """
    world = World(config.device)
    for path in config.model_path:
        read_file(path)  # before the minutes of the first features
    if config.save_path:
        require_free(Path(config.save_path), signs=_signs(config.save_path))
    bank = find_images(config.data_path, "train")
    lists = (bank, find_validation(bank, config.data_path, config.eval_data_path))
    log_class_warnings(bank)
    choices = make_choices(bank, config.shots or (), config.fractions or (), config.label_seeds)
    few = "".join(f" {budget} |" for budget in choices)
    k = config.nb_knn or default_ks((COMPARED_K,), len(bank))[0]
    lines = [f"{HEAD}{k}) | linear |{few}", "|---|--:|--:|" + "--:|" * len(choices)]
    rows: list[Row] = []
    try:
        encoded = _add_rows(rows, config, lists, k, choices, world)
    finally:
        if world.is_main and rows:
            print("\n".join([*lines, *map(str, rows)]), flush=True)
    if world.is_main:
        baseline = ["", encoded.parts[1].describe_majority(lists[1].classes)]
        print("\n".join(baseline), flush=True)
        if config.save_path:
            _write(Path(config.save_path), [*lines, *map(str, rows), *baseline], rows)
    unreadable = encoded.unreadable
    return summarize(unreadable, sum(map(len, lists))) if world.is_main else exit_code(unreadable)


def _add_rows(
    rows: list[Row], config: CompareConfig, lists: Sequence[ImageList], k: int, choices: Choices, world: World
) -> EncodedLists:
    """Add a row for every kind of features, and return the features of the last one; all processes must call.

    For the errors see `run`.
    """
    unreadable = 0
    for name, sources in _kinds(config):
        row = Row(name)
        for encode, size, checkpoint in sources:
            if isinstance(encode, TokenFeatures):
                pixel_format, normalize = pixel_settings.choose_for(
                    encode.normalize, config, checkpoint, lists[0], encode.encoder.in_chans
                )
                encode = replace(encode, normalize=normalize)
            else:
                pixel_format = pixel_settings.choose(config, config.model_path, lists[0]).pixel_format
            encoded = encode_labeled(
                encode, lists, size, config, world, pixel_format=pixel_format, report=not unreadable
            )
            unreadable = encoded.unreadable
            if world.is_main:
                _score(row, encoded, k, choices)
            world.barrier()  # the next exchange could time out while the main process scores
        rows.append(row)
    return encoded


def _kinds(config: CompareConfig) -> Iterator[tuple[str, Iterator[Source]]]:
    """Yield (name, sources) for every kind of features.

    `sources` is lazy: it builds each network only when iteration reaches it.
    """
    if config.pixels:
        yield (
            f"raw pixels, {config.pixels} x {config.pixels}",
            iter([(pixel_features, (config.pixels, config.pixels), "")]),
        )
    for path in config.model_path if config.random_weights else ():
        yield f"random weights, sizes of {path}", (_encoder(path, config, seed) for seed in config.seeds)
    for path in config.model_path:
        yield path, (_encoder(path, config, seed) for seed in (None,))


def _encoder(path: str, config: CompareConfig, seed: int | None) -> Source:
    """Return the encoder of a checkpoint or, if `seed` is set, one of the same sizes with random weights."""
    network, normalize, _ = load_encoder(
        path,
        num_heads=config.num_heads,
        input_size=config.input_size,
        model_key=config.model_key,
        model_prefix=config.model_prefix,
        random_weights=seed is not None,
        in_chans=config.wanted_channels,
        seed=seed or 0,
    )
    encode = TokenFeatures(network, normalize, [len(network.blocks)], [config.pool], config.norm)
    return encode, network.img_size, path


def _score(row: Row, encoded: EncodedLists, k: int, choices: Choices) -> None:
    """Add the accuracies of the encoded bank and queries to a row; every classifier standardizes the features."""
    bank, queries = encoded.parts
    labels = bank.labels, queries.labels
    near, far = standardize(bank.features, queries.features)
    row.knn.append(knn_accuracy(near, labels[0], far, labels[1], [k])[0].top1)
    row.linear.append(linear_accuracy(bank.features, labels[0], queries.features, labels[1]).top1)
    for budget, values in few_shot_accuracies(bank, encoded.kept[0], queries, choices).items():
        row.few.setdefault(str(budget), []).extend(values)


def _cell(values: list[float]) -> str:
    """Return the mean of `values` and, if there are several, their range as text."""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _signs(name: str) -> Sequence[str]:
    """Return the texts by which a file of this command is recognized."""
    return ('"features": ', '"knn": ', '"linear": ') if name.endswith(".json") else (HEAD,)


def _write(path: Path, lines: list[str], rows: list[Row]) -> None:
    text = as_json([row.entry() for row in rows], indent=1) if path.suffix == ".json" else "\n".join(lines)
    try:
        with result_replacement(path, _signs(path.name)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
