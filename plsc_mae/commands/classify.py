"""`plsc-mae finetune` and `plsc-mae linprobe`: train a classifier on labeled images, or evaluate one."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle

from plsc_mae import console, weights
from plsc_mae.analysis.class_counts import describe_imbalance, describe_missed, describe_worst
from plsc_mae.commands.after_epoch import AfterEpoch
from plsc_mae.commands.classify_data import (
    Images,
    build_datasets,
    cached_datasets,
    check_datasets,
    find_evaluation_parts,
    find_training_images,
    training_batches,
    validation_loader,
)
from plsc_mae.commands.evaluation import evaluate
from plsc_mae.commands.next_steps import RATE_PAGES, after_chance, after_classification
from plsc_mae.config import ClassifyConfig, FinetuneConfig, LinprobeConfig
from plsc_mae.data.classes import ClassOrder
from plsc_mae.data.imagefolder import GivenImages, ImageList
from plsc_mae.data.loader import KeyedDataset
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.class_names import Head, read_head
from plsc_mae.loading.classifier_weights import (
    load_classifier_weights,
    parts_of_start,
    read_start,
    start_from_pretraining,
    warn_of_eps,
    warn_of_statistics,
)
from plsc_mae.loading.contents import base_of
from plsc_mae.loading.encoder_sizes import settle_sizes
from plsc_mae.loading.eval_sets import EvaluationPart
from plsc_mae.methods.classify import (
    ClassifyTask,
    build_classifier,
    build_normalize,
    crops_by_area,
    left_out_augmentations,
)
from plsc_mae.methods.label_kinds import LabelKind, stored_kind
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.registry import CLASSIFIER, require_network
from plsc_mae.names import escape_name
from plsc_mae.parallel.world import World
from plsc_mae.pipeline.schedule import Line
from plsc_mae.pipeline.stages import check_pipeline_options, keep_stage, stages_by_cost
from plsc_mae.pipeline.task import PipelinedTask
from plsc_mae.plan.run_memory import planned_memory
from plsc_mae.plan.sketch import check_network
from plsc_mae.train.announcements import announce_command
from plsc_mae.train.checkpoint.folder import Start, find_start
from plsc_mae.train.checkpoint.run_record import RunRecord
from plsc_mae.train.checkpoint.state import BEST
from plsc_mae.train.class_results import read_class_results
from plsc_mae.train.history import recording_warnings
from plsc_mae.train.observers.base import Evaluation
from plsc_mae.train.plausibility import warn_of_shape
from plsc_mae.train.precision import choose_precision
from plsc_mae.train.scaling import is_early, remedy_at_chance
from plsc_mae.train.setup import build_trainer, share_network, training_world
from plsc_mae.train.signals import preparing_run
from plsc_mae.train.trainer import Trainer
from plsc_mae.weights import Checkpoint, LoadReport
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

FEW_IMAGES = 8  # smaller batches are too small for a batch norm
LARGEST_START = 0.1  # share of the initial weights in the final moving average, above which there is a warning


class Trained(NamedTuple):
    """Checkpoint of a classifier to evaluate, its outputs, and the kind of its labels."""

    checkpoint: Checkpoint
    head: Head
    kind: LabelKind


def run(config: ClassifyConfig) -> None:
    """Train the classifier of `config` or, with --eval, evaluate it; raise as `train` does."""
    train(config, GivenImages())


def train(config: ClassifyConfig, given: GivenImages) -> Mapping[str, float]:
    """Train the classifier of `config` or, with --eval, evaluate it.

    Args:
        config: options of the run.
        given: images in place of those of --data_path and --eval_data_path.

    Returns:
        The metrics by name: those of --eval, or of the evaluation after the last epoch that this call finished; {} if
        nothing was evaluated.

    Raises:
        UserError: options, data, folders or checkpoints cannot be used; the message names the remedy.
    """
    if config.eval:
        return _train(config, Start(None, RunRecord()), given)
    with preparing_run(), recording_warnings():
        return _train(config, find_start(config), given)


def _train(config: ClassifyConfig, start: Start, given: GivenImages) -> Mapping[str, float]:
    require_network(config.model, CLASSIFIER)
    trained = _read_trained(config) if config.eval else None
    stored = trained.checkpoint if trained else read_start(config, start.checkpoint)
    config = config if stored is None else settle_sizes(config, stored)
    check_network(config)
    images, evaluated = _find_images(config, trained, given)
    known = images.val if config.eval else images.train
    origin = start.checkpoint or config.resume or config.finetune
    config = pixel_settings.settle(config, known if isinstance(known, ImageList) else None, origin)
    world = training_world(config)
    announce_command(config, world)
    if not config.eval and (left_out := left_out_augmentations(config)):
        logger.info("%s", left_out)
    paddle.seed(config.seed)
    model = build_classifier(config, images.num_classes, **parts_of_start(config, stored))
    if trained is None:
        _load_start(model, config, start.checkpoint, stored, images.class_order)
    else:
        _load_trained(model, config, trained)
    del trained, stored  # all tensors of the file
    share_network(model, config, world)
    if world.pipeline.size > 1:
        _keep_stage(model, config, world)
    if config.eval:
        return _evaluate(model, evaluated, config, images, world)
    datasets = build_datasets(config, images, world)
    check_datasets(datasets, config, world)
    if isinstance(config, LinprobeConfig) and config.cache_features:
        if world.tensor.size > 1:
            raise ConfigError("--cache_features and --tensor_parallel cannot be combined; leave one of them out")
        datasets = cached_datasets(model, config, images, world)
        if not world.is_main:
            return {}
        world = world.alone()
    task = _task(model, config, images, world)
    evaluations = _evaluations(task, config, datasets.val, world)
    assert datasets.train is not None
    loader = training_batches(config, images, datasets.train, world)
    if world.is_main:
        _warn_of_small_data(config, len(loader))
        _warn_of_crops(config, images)
        _advise_balance(config, images)
    kept = f"test_{images.kind.best_metric}" if evaluations and not isinstance(task, SweepTask) else ""
    memory = planned_memory(task, config, world)
    after = _after_epoch(evaluations, images, config)
    trainer = build_trainer(
        task, loader, config, world, observers=evaluations, keep_best=kept, planned_memory=memory, after_epoch=after
    )
    trainer.chance = _chance(images) if kept else None
    trainer.fit(start)
    if world.is_main:
        _conclude(trainer, task, images, config)
    return trainer.metrics


def _conclude(trainer: Trainer, task: ClassifyTask | PipelinedTask, images: Images, config: ClassifyConfig) -> None:
    """Print the warnings and the next steps of a finished run, or the table of a sweep."""
    at_chance, at = False, trainer.progress
    if images.val is not None and not is_early(config, at.epoch, at.step):  # --max_train_step can end a run early
        _warn_of_missed_classes(config)
        names = [f"test_{images.kind.best_metric}_{name}" for name in _rates(task)]
        best = max([at.best, *(trainer.metrics.get(name, -math.inf) for name in names)])
        at_chance = warn_of_chance(config, images.kind, best, images.val.labels, _losses(task, trainer.metrics))
    if trainer.chance is not None and trainer.metrics and not at_chance:
        _print_result(trainer, images.kind, trainer.chance)
    if isinstance(task, SweepTask):
        _print_sweep(task, trainer.metrics)
    elif trainer.saver.saved_path is not None:
        file = trainer.saver.path(BEST)
        used = file if file.exists() else trainer.saver.saved_path
        after_chance(config) if at_chance else after_classification(config, used, trainer.state.run)


def _print_result(trainer: Trainer, kind: LabelKind, chance: float) -> None:
    """Print the best and the last value of the metric that chooses checkpoint-best.pd, and the worst class.

    `chance` is the value that luck explains.
    """
    name, results = f"test_{kind.best_metric}", read_class_results(Path(trainer.config.output_dir))
    worst = ""
    if results is not None and not kind.dense:
        counts = (results.best or results.last).counts
        worst = f"; {describe_worst(counts, [escape_name(name) for name in results.names])}"
    console.report(
        f"result: {name} {trainer.progress.best:.4g} at its best, {trainer.metrics[name]:.4g} at the end; luck reaches "
        f"up to {chance:.4g}{worst}"
    )


def _chance(images: Images) -> float | None:
    """Return the validation metric that luck explains, see `LabelKind.chance`; None if it is not finite."""
    assert images.val is not None
    limit = images.kind.chance(images.val.labels)
    return limit if math.isfinite(limit) else None


def _after_epoch(evaluations: Sequence[Evaluation], images: Images, config: ClassifyConfig) -> AfterEpoch | None:
    """Return the callback of the Trainer; None without validation images."""
    if not evaluations or images.train is None:
        return None
    return AfterEpoch(config, evaluations[0], images.class_order, images.train.labels)


def _rates(task: ClassifyTask | PipelinedTask) -> Sequence[str]:
    """Return the names of the learning rates of a sweep; () for other tasks."""
    return task.names if isinstance(task, SweepTask) else ()


def _losses(task: ClassifyTask | PipelinedTask, metrics: Mapping[str, float]) -> dict[float, float]:
    """Return the test losses of a sweep by rate; {} for other tasks."""
    if not isinstance(task, SweepTask) or not metrics:
        return {}
    return {rate: metrics[f"test_loss_{name}"] for rate, name in zip(task.rates, task.names, strict=True)}


def _warn_of_small_data(config: ClassifyConfig, iterations: int) -> None:
    """Warn of options that need larger batches or, in fine-tuning, more updates than this run has."""
    if config.probe != "none" and config.batch_size < FEW_IMAGES:
        logger.warning(
            "the probe's batch norm computes mean and variance over %s, which is too few; give --batch_size %d or more",
            *(counted(config.batch_size, "image"), FEW_IMAGES),
        )
    if isinstance(config, FinetuneConfig):
        _warn_of_short_finetuning(config, config.epochs * -(-iterations // config.accum_iter))


def _advise_balance(config: ClassifyConfig, images: Images) -> None:
    """Log the option for unbalanced classes if the training images need it."""
    if images.train is None or images.kind.dense or config.balance_classes:
        return
    if advice := describe_imbalance(np.bincount(images.train.labels)):
        logger.info("%s", advice)


def _warn_of_crops(config: ClassifyConfig, images: Images) -> None:
    """Warn if no crop can hold a whole training image of the typical shape, in runs with such crops."""
    if isinstance(images.train, ImageList) and crops_by_area(config):
        warn_of_shape(config, images.train)


def _warn_of_short_finetuning(config: FinetuneConfig, updates: int) -> None:
    if config.batch_size == 1 and (config.mixup or config.cutmix or config.cutmix_minmax):
        logger.warning("mixup and cutmix have no effect with --batch_size 1: an image has no partner")
    start = config.model_ema_decay**updates
    if config.model_ema and start > LARGEST_START:
        logger.warning(
            "--model_ema_decay %g is too high for %s: the average keeps %.0f %% of the initial weights, so "
            "ema_test_acc1 says little; --model_ema_decay %.3g keeps 1 %%",
            *(config.model_ema_decay, counted(updates, "update"), 100 * start, 0.01 ** (1 / updates)),
        )


def _warn_of_missed_classes(config: ClassifyConfig) -> None:
    """Warn if, after the epoch of the best checkpoint, no validation image is classified as some class."""
    results = read_class_results(Path(config.output_dir))
    if results is None:
        return
    found, which = (results.best, "the best one") if results.best else (results.last, "the last one")
    names = [escape_name(name) for name in results.names]
    if missed := describe_missed(found.counts.images, found.counts.predicted, names):
        unbalanced = "" if config.balance_classes else describe_imbalance(results.trained)
        logger.warning("after epoch %d, %s, %s%s", found.epoch, which, missed, f"; {unbalanced}" if unbalanced else "")


def warn_of_chance(
    config: ClassifyConfig,
    kind: LabelKind,
    best: float,
    labels: npt.NDArray[Any],
    losses: Mapping[float, float] | None = None,
) -> bool:
    """Warn if the best validation metric of a finished run is no better than chance can explain; return whether.

    There is no warning where chance explains any value, for example with validation images of a single class.

    Args:
        config: options of the run.
        kind: kind of the labels.
        best: largest value of `kind.best_metric`; infinite or NaN if nothing was evaluated.
        labels: validation labels, see `LabelKind.chance`.
        losses: see `remedy_at_chance`.
    """
    if not math.isfinite(best) or not best <= (limit := kind.chance(labels)) < kind.perfect:
        return False
    logger.warning(
        "test_%s %.4g, the best of the %s, is within chance: without looking at the images, predictions for the "
        "validation images reach up to %.4g; try %s, or check with `plsc-mae doctor` that the labels belong to the "
        "images: %s",
        *(kind.best_metric, best, "last epoch" if losses else "run", limit),
        *(remedy_at_chance(config, losses), RATE_PAGES),
    )
    return True


# ------------------------------------------------------------------------------------------------- network


def _read_trained(config: ClassifyConfig) -> Trained:
    stored = weights.read_network(config.resume or config.finetune, config.model_key, config.model_prefix)
    return Trained(stored, read_head(base_of(stored), config.classes), stored_kind(stored.meta, stored.path))


def _only_evaluated(part: EvaluationPart, trained: Trained) -> Images:
    """Return the `Images` of a run without training; `part` is the first part of the evaluation set."""
    return Images(None, part.images, trained.head.outputs, ClassOrder(), trained.kind)


def _find_images(
    config: ClassifyConfig, trained: Trained | None, given: GivenImages
) -> tuple[Images, Iterator[EvaluationPart]]:
    """Return the images of a run, or those of the first part of an evaluation, and the parts of the evaluation."""
    if trained is None:
        return find_training_images(config, given), iter(())
    parts = find_evaluation_parts(config, trained.head, trained.kind, given)
    first = next(parts)
    return _only_evaluated(first, trained), itertools.chain([first], parts)


def _load_trained(model: ImageClassifier, config: ClassifyConfig, trained: Trained) -> None:
    """Load and log the weights of the classifier to evaluate."""
    warn_of_eps(model.encoder, trained.checkpoint)
    warn_of_statistics(trained.checkpoint, config)
    logger.info("%s: %s", trained.head.source, load_classifier_weights(model, trained.checkpoint))


def _load_start(
    model: ImageClassifier,
    config: ClassifyConfig,
    resumed: Path | None,
    stored: Checkpoint | None,
    classes: ClassOrder,
) -> None:
    """Load and log the weights that a run starts from.

    `stored` is the content of its file, None for random weights. `resumed` is the checkpoint of a resumed run, None for
    a new one. The trainer restores a resumed run later; only its encoder is loaded here, and only for --cache_features.
    """
    if resumed is not None:
        if isinstance(config, LinprobeConfig) and config.cache_features:  # encodes before the trainer restores weights
            report = weights.load(model.encoder, resumed, prefix="encoder.")
            found = counted(len(report.matched), "tensor")
            logger.info("%s: loaded %s of the encoder, to encode every image", resumed, found)
    elif stored is not None:
        _log_start(config.finetune, start_from_pretraining(model, config, stored, classes))
    else:
        logger.warning("without --finetune the encoder starts from random weights")


def _task(model: ImageClassifier, config: ClassifyConfig, images: Images, world: World) -> ClassifyTask | PipelinedTask:
    parts = build_normalize(config), config, images.num_classes, images.class_order, images.kind
    if isinstance(config, LinprobeConfig) and config.lr_sweep:
        return SweepTask(model, *parts)  # type: ignore[arg-type]
    task = ClassifyTask(model, *parts)
    if world.pipeline.size == 1:
        return task
    return PipelinedTask(task, world, config.micro_batches, frozen=config.probe != "none")


def _keep_stage(model: ImageClassifier, config: ClassifyConfig, world: World) -> None:
    """Keep only this process's pipeline stage of the network, and log the blocks of every stage."""
    check_pipeline_options(config)
    stages = stages_by_cost(model, world)
    keep_stage(model, Line.of(world), stages[world.stage])
    logger.info("blocks by stage: %s", ", ".join(f"{blocks[0]}-{blocks[-1]}" for blocks in stages))


def _log_start(path: str, report: LoadReport) -> None:
    fresh = sorted({re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] for name in report.missing})
    resized = f", resized: {', '.join(report.resized)}" if report.resized else ""
    logger.info(
        "%s (%s): %s loaded, new layers: %s, %s of the file not used%s",
        path,
        report.dialect,
        counted(len(report.matched), "tensor"),
        ", ".join(fresh) or "none",
        counted(len(report.unexpected), "tensor"),
        resized,
    )


# ---------------------------------------------------------------------------------------------- evaluation


def _evaluations(
    task: ClassifyTask | PipelinedTask, config: ClassifyConfig, dataset: KeyedDataset | None, world: World
) -> list[Evaluation]:
    """Return the evaluations of the weights and, with --model_ema, of their moving average; none without `dataset`.

    If the labels are classes, they count the results per class.
    """
    if dataset is None:
        return []
    evaluate = _evaluation(task, config, dataset, world)
    whole = task.task if isinstance(task, PipelinedTask) else task
    counts_classes = not whole.kind.dense and not isinstance(whole, SweepTask)
    counting = {
        "num_classes": whole.model.num_classes if counts_classes else 0,
        "balanced": config.balance_classes,
    }
    own = evaluate(**counting)
    if whole.average is None:
        return [own]
    return [own, evaluate(prefix="ema_test_", weights=whole.average.applied, **counting)]


def _evaluation(
    task: ClassifyTask | PipelinedTask, config: ClassifyConfig, dataset: KeyedDataset, world: World
) -> Callable[..., Evaluation]:
    """Return a constructor of evaluations on a data set; calls pass the remaining arguments of `Evaluation`."""
    loader = validation_loader(dataset, config, world)
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
    return functools.partial(Evaluation, task, loader, world, shared=config.dist_eval, precision=precision)


def _evaluate(
    model: ImageClassifier, parts: Iterator[EvaluationPart], config: ClassifyConfig, images: Images, world: World
) -> Mapping[str, float]:
    """Evaluate the loaded network on the parts of an evaluation set; all processes must call."""
    task = _task(model, config, images, world)

    def evaluation_of(part: EvaluationPart) -> Evaluation:
        dataset = build_datasets(config, images._replace(val=part.images), world).val
        assert dataset is not None
        return _evaluation(task, config, dataset, world)(gather=True)

    return evaluate(task.task if isinstance(task, PipelinedTask) else task, parts, evaluation_of, config, world)


def _print_sweep(task: SweepTask, metrics: dict[str, float]) -> None:
    if not metrics:
        return
    lines, rows = [f"{task.peak_name:>9}  test_acc1  test_loss"], []
    for rate, name in zip(task.rates, task.names, strict=True):
        accuracy, loss = metrics[f"test_acc1_{name}"], metrics[f"test_loss_{name}"]
        lines.append(f"{rate:9.4g}  {accuracy:9.2f}  {loss:9.4f}")
        rows.append({"rate": rate, "test_acc1": accuracy, "test_loss": loss})
    console.print_result("\n".join(lines), {"event": "sweep", "rates": rows})
    logger.info(
        "the checkpoints hold no classifier and only continue this sweep, with --auto_resume; a run with one of these "
        "rates as %s trains a classifier",
        task.peak_name,
    )
