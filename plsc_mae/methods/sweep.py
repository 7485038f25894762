"""A sweep of linear probes: one linear layer per learning rate, all trained together on the same frozen features."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import paddle
from paddle import Tensor

from plsc_mae.config import LinprobeConfig
from plsc_mae.data.classes import ClassOrder
from plsc_mae.data.normalize import Normalize
from plsc_mae.methods.base import Batch, StepOutput
from plsc_mae.methods.classify import ClassifyTask
from plsc_mae.methods.label_kinds import LabelKind, classification_scores
from plsc_mae.models.classifier import ImageClassifier, ParallelHeads
from plsc_mae.optim import ParamGroup


class SweepTask(ClassifyTask):
    """The task of training one linear layer for each rate of `config.lr_sweep`, all with the same initial weights.

    The layers share no trained parameter, and the optimizers of probes update each parameter independently. Therefore
    each layer gets the same weights as in a separate run.

    Args:
        model: a probe; its head is replaced by `ParallelHeads` with one linear layer per rate.
        normalize: converts images to the classifier's floats.
        config: the run's options.
        num_classes: number of classes K.
        class_order: classes of the run; None if they are unknown.
        kind: kind of the labels, which must be classes; None for classes.
    """

    def __init__(
        self,
        model: ImageClassifier,
        normalize: Normalize,
        config: LinprobeConfig,
        num_classes: int,
        class_order: ClassOrder | None = None,
        kind: LabelKind | None = None,
    ) -> None:
        super().__init__(model, normalize, config, num_classes, class_order, kind)
        assert config.lr_sweep
        self.rates = config.lr_sweep
        self.peak_name, self.peak = config.given_rate
        self.heads = model.head = ParallelHeads(model.head, len(self.rates))
        self.constant_scores = ()
        self.score_names = tuple(f"{score}_{name}" for name in self.names for score in ("loss", "acc1"))

    @property
    def names(self) -> list[str]:
        """The names of the rates in the logs, such as "lr0.1", in the order of `rates`."""
        return [f"lr{rate:g}" for rate in self.rates]

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the sum of the mean cross entropies of all layers, and log each, for example as "loss_lr0.1"."""
        losses = [self.loss(logits, batch["target"]).loss for logits in self.logits(batch)]
        logs = {f"loss_{name}": loss.detach() for name, loss in zip(self.names, losses, strict=True)}
        return StepOutput(paddle.add_n(losses), logs)

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross entropy and top-1 accuracy (0 or 100) of every image for every layer."""
        scores: dict[str, Tensor] = {}
        labels = self.class_order.outputs_of(batch["label"])
        for name, logits in zip(self.names, self.logits(self.prepare(batch)), strict=True):
            found = classification_scores(logits, labels)
            scores |= {f"{score}_{name}": found[score] for score in ("loss", "acc1")}
        return scores

    def left_out(self, values: Mapping[str, float]) -> Collection[str]:
        """Return the names of all values but those of the best rate: a line with every rate would be too long.

        The best rate has the highest accuracy or, without an evaluation, the lowest training loss.
        """
        first = self.names[0]
        score = next((score for score in ("test_acc1", "train_loss", "loss") if f"{score}_{first}" in values), None)
        if score is None:
            return ()
        choose = max if score == "test_acc1" else min
        best = choose(self.names, key=lambda name: values[f"{score}_{name}"])
        others = tuple(f"_{name}" for name in self.names if name != best)
        known = {f"train_loss_{best}"} if score == "test_acc1" else set()  # test_loss says more
        return known | {name for name in values if name.endswith(others)}

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Group the parameters by rate, weights apart from biases, which have no weight decay.

        The learning rate of a group is the scheduled one times rate / `lr`, or rate / `blr` if `lr` is not set.
        """
        assert self.peak
        groups = []
        for i, rate in enumerate(self.rates):
            named = {f"head.linears.{i}.{name}": p for name, p in self.heads.linears[i].named_parameters()}
            for decay, dims in ((weight_decay, 2), (0.0, 1)):
                part = {name: p for name, p in named.items() if p.ndim == dims}
                groups.append(ParamGroup(list(part), list(part.values()), decay, rate / self.peak))
        return groups
