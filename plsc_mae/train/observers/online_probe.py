"""Linear classifier trained on the network's features of the training batches, without influence on the network.

The classifier is not part of the Task, so the Task's data parallelism, mixed precision and optimizer do not affect it.
Processes all-reduce statistics and gradients, so all of them hold the same probe. B batch, D width, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.data.classes import ClassOrder
from plsc_mae.errors import CheckpointError
from plsc_mae.losses import cross_entropy
from plsc_mae.optim import (
    ParamGroup,
    build_adamw,
    load_optimizer_state,
    optimizer_state,
    stored_optimizer_state,
)
from plsc_mae.parallel.world import World
from plsc_mae.weights.reader import Checkpoint

SECTION = "online_probe"  # key of the probe's tensors in a checkpoint
CLASSES = "online_probe_classes"  # key of the probe's class names in a checkpoint
STATISTICS_SHARE = 0.1  # weight of the newest batch in the running statistics, as in batch normalization
EPS = 1e-6


class OnlineProbe:
    """Linear classifier of standardized features, trained by AdamW at a constant rate with one update per batch.

    Every dimension is standardized by its running mean and variance, as linear probes normalize the input of their head
    with a batch normalization without scale and shift (He et al. 2022, appendix A.1). The first batches have equal
    weights in these statistics. The objective is convex, so the classifier starts from zero and needs no random
    numbers.

    Args:
        num_features: D.
        num_classes: K.
        lr: learning rate.
        world: processes of the run.
        class_order: names of the classes; None if they are unknown.
    """

    def __init__(
        self, num_features: int, num_classes: int, lr: float, world: World, class_order: ClassOrder | None = None
    ) -> None:
        self.world, self.class_order = world, class_order or ClassOrder()
        zero = nn.initializer.Constant(0.0)
        self.head = nn.Linear(
            num_features,
            num_classes,
            weight_attr=paddle.ParamAttr(initializer=zero),
            bias_attr=paddle.ParamAttr(initializer=zero),
        )
        self.params = dict(self.head.named_parameters())
        self.optimizer = build_adamw([ParamGroup(list(self.params), list(self.params.values()), 0.0)])
        self.optimizer.set_lr(lr)
        self.mean, self.variance = paddle.zeros([num_features]), paddle.zeros([num_features])
        self.updates = 0
        self._pending: list[tuple[Tensor, Tensor]] = []

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Keep a batch until the network's update is applied or discarded; the arguments are those of `__call__`."""
        self._pending.append((features, labels))

    def learn(self) -> list[dict[str, Tensor]]:
        """Call the probe on each kept batch and return the metrics of each, in order; all processes must call."""
        logs = [self(features, labels) for features, labels in self._pending]
        self._pending = []
        return logs

    def forget(self) -> None:
        """Discard the kept batches."""
        self._pending = []

    def __call__(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Classify a batch, then update the classifier with it; all processes must call.

        Args:
            features: float32 [B, D], without gradient.
            labels: class numbers [B].

        Returns:
            {"online_loss", "online_acc1"}: cross entropy and top-1 accuracy in percent of this process's batch before
            the update, as scalars.
        """
        labels = self.class_order.outputs_of(labels)
        logits = self.head(self._standardize(features))
        loss = cross_entropy(logits, labels)
        (loss / self.world.size).backward()
        for param in self.params.values():
            self.world.sum(param.grad)
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)
        self.updates += 1
        accuracy = (logits.detach().argmax(axis=1) == labels).astype("float32").mean() * 100
        return {"online_loss": loss.detach(), "online_acc1": accuracy}

    @paddle.no_grad()
    def _standardize(self, features: Tensor) -> Tensor:
        """Update the running statistics with the batches of all processes; return this process's batch standardized.

        All processes must call.
        """
        if self.updates == 0:  # around zero, rounding could hide a variance far below the squared mean
            self.mean = self.world.sum(features.mean(axis=0)) / self.world.size
        centered = features - self.mean
        moments = self.world.sum(paddle.concat([centered.mean(axis=0), (centered * centered).mean(axis=0)]))
        moments = moments / self.world.size
        shift, square = paddle.split(moments, 2)
        share = max(1 / (self.updates + 1), STATISTICS_SHARE)
        self.mean = self.mean + share * shift
        self.variance = (1 - share) * self.variance + share * (square - share * shift * shift)
        return (features - self.mean) / paddle.sqrt(self.variance + EPS)

    def extra_state(self) -> dict[str, Any]:
        """Return weights, running statistics and optimizer state as a section of a checkpoint, and the class names."""
        arrays = {name: param.numpy() for name, param in self.params.items()}
        arrays |= {"mean": self.mean.numpy(), "variance": self.variance.numpy(), "updates": np.asarray(self.updates)}
        section = {**arrays, "optimizer": optimizer_state(self.optimizer, self.params)}
        return {SECTION: section, CLASSES: list(self.class_order.names)}

    def load(self, stored: Checkpoint) -> bool:
        """Restore the result of `extra_state`; return False if the checkpoint has no online probe.

        Raises:
            CheckpointError: the stored probe has other classes, or another number of features or classes.
        """
        start = SECTION + "/"
        arrays = {name[len(start) :]: x for name, x in stored.tensors.items() if name.startswith(start)}
        if not arrays:
            return False
        remedy = "resume with the data it was trained on, or without --online_probe"
        self.class_order.restore(stored.meta.get(CLASSES), f"the online probe in {stored.path}", remedy)
        found, wanted = arrays["weight"].shape, tuple(self.head.weight.shape)
        if found != wanted:
            raise CheckpointError(
                f"the online probe in {stored.path} is for {found[1]} classes and {found[0]} features, this run has "
                f"{wanted[1]} and {wanted[0]}; {remedy}"
            )
        for name, param in self.params.items():
            param.set_value(arrays[name])
        self.mean, self.variance = paddle.to_tensor(arrays["mean"]), paddle.to_tensor(arrays["variance"])
        self.updates = int(arrays["updates"])
        load_optimizer_state(self.optimizer, stored_optimizer_state(arrays, "optimizer"), self.params)
        return True
