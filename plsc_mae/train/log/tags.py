"""Names of a run's records in VisualDL and other boards, and the records that a resumed run keeps.

VisualDL sorts the groups of charts and pictures by name and opens only the first one. So the names of the groups put
the loss before all other curves and the reconstructions before all other pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from plsc_mae.analysis.health import EXTREMES

# Fields of every print interval's record; the console line prints all further ones as metrics.
POSITION_FIELDS = ("epoch", "iteration", "step")
SETTING_FIELDS = ("lr", "min_lr", "weight_decay", "loss_scale", "grad_norm")
MEASURED_FIELDS = ("images_per_second", "data_share", "memory_gib", "time")
FIXED_FIELDS = POSITION_FIELDS + SETTING_FIELDS + MEASURED_FIELDS
FIXED_LOSSES = ("fixed_loss", "fixed_loss_to_trivial")  # of `observers.features.RepresentationWatch`
NONFINITE_COUNTS = ("skipped_updates", "rollbacks")

LOSS, METRICS, OPTIM, PROBE, REPRESENTATION, SPEED = "loss", "metrics", "optim", "probe", "representation", "speed"
RECONSTRUCTION, TOKEN_ATTENTION, TOKEN_PCA = "reconstruction", "token_attention", "token_pca"
PARAMETERS, GRADIENTS = "parameters", "gradients"  # histograms
CONFIG, HPARAMS = "config", "hparam"
BY_EPOCH = "_by_epoch"  # suffix of means over epochs

_PRINTED = (LOSS, OPTIM, PROBE, SPEED)  # one record per line of train.jsonl
_UPDATE = (PARAMETERS, GRADIENTS, CONFIG)  # at most one record per update
# At most one record per finished epoch, and one before the first update.
_EPOCH = (METRICS, REPRESENTATION, RECONSTRUCTION, TOKEN_ATTENTION, TOKEN_PCA, HPARAMS)


def line_tags(record: Mapping[str, float]) -> dict[str, float]:
    """Return the curves of a print interval, {group/name: value}; the loss comes first."""
    names = [name for name in record if name not in POSITION_FIELDS]
    return {f"{_group(name)}/{name}": record[name] for name in sorted(names, key=lambda name: name != "loss")}


def epoch_tags(record: Mapping[str, float], observed: Mapping[str, float]) -> dict[str, float]:
    """Return the curves of an epoch, {group/name: value}: means of losses and probe, and the observers' metrics.

    Args:
        record: values of the epoch; names of training's values start with train_.
        observed: the observers' metrics by name.
    """
    means = {name.removeprefix("train_"): value for name, value in record.items() if name.startswith("train_")}
    trained = {f"{_group(name)}/{name}{BY_EPOCH}": means[name] for name in means if _group(name) in (LOSS, PROBE)}
    shown = {*EXTREMES, *FIXED_LOSSES}
    seen = {f"{REPRESENTATION if name in shown else METRICS}/{name}": value for name, value in observed.items()}
    return trained | seen


def _group(name: str) -> str:
    """Return the group of charts to which a value of training belongs."""
    if name in SETTING_FIELDS or name in NONFINITE_COUNTS:
        return OPTIM
    if name in MEASURED_FIELDS:
        return SPEED
    return PROBE if name.startswith("online_") else LOSS


class KeptRecords:
    """Filter for VisualDL records up to a position.

    Steps are updates. Earlier versions had other tags; the steps of their train/* tags are updates, too, and those of
    all others are epochs, counted from 0.

    Args:
        step: finished updates; at 0 no record is kept.
        epoch: current epoch.
        lines: number of lines of train.jsonl at `step` itself, each with one record per curve.
        epoch_steps: finished updates at the end of each finished epoch.
    """

    def __init__(self, step: int, epoch: int, lines: int, epoch_steps: Collection[int]) -> None:
        self.step, self.epoch, self.lines = step, epoch if step else 0, lines
        self.epoch_steps = {0, *epoch_steps}
        self._seen: Counter[str] = Counter()

    def __call__(self, tag: str, step: int) -> bool:
        """Return whether to keep the next record of `tag`, which is at `step`."""
        group = tag.partition("/")[0]
        if tag.endswith(BY_EPOCH) or group in _EPOCH:
            return self.step > 0 and step <= self.step and step in self.epoch_steps
        if group in _UPDATE:
            return self.step > 0 and step <= self.step
        if group not in _PRINTED and group != "train":
            return step < self.epoch
        if step == self.step:
            self._seen[tag] += 1
            return self._seen[tag] <= self.lines
        return step < self.step
