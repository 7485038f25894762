"""Our side of a comparison: a network with its weights, and a batch.

B batch, L patches, M hidden patches, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.losses import alignment_loss
from plsc_mae.methods.base import Task
from plsc_mae.parity.capture import recorded_blocks
from plsc_mae.parity.oracle import cae as cae_oracle
from plsc_mae.parity.oracle import mae as mae_oracle
from plsc_mae.parity.oracle.layers import Array
from plsc_mae.train.precision import FLOAT32, Precision, autocast

NumPy = npt.NDArray[Any]
NORM_EPS = 1e-6  # of every implementation but LiBai
Objective = Callable[[dict[str, Array]], float]


class Case(ABC):
    """A network, the options it was made by, and one batch.

    Args:
        config: options of pre-training.
        task: what training would run; its network gets into evaluation mode.
        batch_size: images B.
        seed: of the batch.
        precision: of our network's arithmetic.

    Attributes:
        model: the network.
        batch: float32 images [B, C, H, W] and what decides the mask, by name, in the order networks take them.
    """

    def __init__(self, config: Any, task: Task, batch_size: int, seed: int, precision: Precision = FLOAT32) -> None:
        self.config, self.task, self.precision = config, task, precision
        self.model: Any = task.model
        self.model.eval()
        self.batch = self._draw_batch(batch_size, np.random.default_rng(seed))

    @abstractmethod
    def outputs(self) -> dict[str, Tensor]:
        """Run the network with every output it has; they are called as the oracle calls them."""

    @abstractmethod
    def loss(self) -> Tensor:
        """The loss by the way that training takes."""

    @abstractmethod
    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """What the oracle makes of the same batch."""

    @abstractmethod
    def objective(self) -> Objective:
        """The oracle's loss as a function of the parameters; what has no gradient is held at the network's own."""

    @abstractmethod
    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]: ...

    @property
    def name(self) -> str:
        """Of the network."""
        return str(self.config.model)

    def parameters(self) -> dict[str, Array]:
        """The network's weights and tables in float64."""
        return {name: value.numpy().astype(np.float64) for name, value in self.model.state_dict().items()}

    def layers(self) -> dict[str, NumPy]:
        """Every layer's output, as the oracle calls it."""
        with paddle.no_grad(), autocast(self.precision), recorded_blocks(self.model) as blocks:
            outputs = self.outputs()
        return {name: value.astype("float32").numpy() for name, value in {**blocks, **outputs}.items()}

    def backward(self) -> float:
        """Put the gradients of the loss into the parameters, in place of any that are there; returns the loss."""
        self.model.clear_gradients()
        with autocast(self.precision):
            loss = self.loss()
        loss.backward()
        return float(loss)

    def gradients(self) -> dict[str, NumPy]:
        """What `backward` has put into the trainable parameters; zeros where it did not come."""
        found = {}
        for name, param in self.model.named_parameters():
            if not param.stop_gradient:
                found[name] = np.zeros(param.shape) if param.grad is None else param.grad.numpy()
        return found

    def tensors(self) -> list[Tensor]:
        """The batch on the device."""
        return [paddle.to_tensor(value) for value in self.batch.values()]

    def arrays(self) -> list[NumPy]:
        """The batch for the oracle, floats in float64."""
        values = self.batch.values()
        return [value.astype(np.float64) if value.dtype == np.float32 else value for value in values]

    def _draw_images(self, batch_size: int, rng: np.random.Generator) -> NumPy:
        encoder = self.model.encoder
        channels = encoder.patch_embed.proj.weight.shape[1]
        return rng.standard_normal((batch_size, channels, *encoder.img_size), np.float32)


class MAECase(Case):
    """A masked autoencoder, of whichever implementation."""

    def outputs(self) -> dict[str, Tensor]:
        """Run the network."""
        model, (images, noise) = self.model, self.tensors()
        out = model(images, noise, self.config.mask_ratio)
        target = model.target(model.patchify(images))
        # The oracle drops a class token that is not decoded where the originals do, before the final norm.
        decoded = out.latent[:, model.encoder.num_prefix_tokens - model.decoder.num_prefix_tokens :]
        return {"latent": decoded, "pred": out.pred, "target": target, "mask": out.mask, "loss": out.loss}

    def loss(self) -> Tensor:
        """Predict hidden patches only."""
        return self.model(*self.tensors(), self.config.mask_ratio, loss_only=True).loss

    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """See `oracle.mae.forward`."""
        images, noise = self.arrays()
        return mae_oracle.forward(parameters, images, noise, self.options())

    def objective(self) -> Objective:
        """Everything has a gradient, or does not depend on the parameters."""
        return lambda parameters: float(self.oracle(parameters)["loss"])

    def options(self) -> mae_oracle.MAEOptions:
        """The switches as the oracle has them for this implementation, and what may be chosen of it.

        They do not come from the network, so that a switch which it has wrong shows.
        """
        config = self.config
        switches = dict(mae_oracle.RELATIVES[config.method])
        if not config.norm_pix_loss:
            switches["pixel_norm"] = "none"
        if hasattr(config, "class_token"):
            switches["class_token"] = config.class_token
        if getattr(config, "train_positions", False):
            switches["positions"] = "given"
        return mae_oracle.MAEOptions(
            num_heads=self.model.encoder.blocks[0].attn.num_heads,
            decoder_num_heads=self.model.decoder.blocks[0].attn.num_heads,
            mask_ratio=config.mask_ratio,
            norm_eps=getattr(config, "norm_eps", None) or NORM_EPS,
            **switches,
        )

    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]:
        noise = rng.random((batch_size, self.model.encoder.num_patches), np.float32)
        return {"images": self._draw_images(batch_size, rng), "noise": noise}


class CAECase(Case):
    """A context autoencoder that predicts classes. They are drawn: tokens of noise would mean no more."""

    def outputs(self) -> dict[str, Tensor]:
        """Run the network."""
        images, mask, labels = self.tensors()
        out = self.model(images, mask)
        main, align = self._losses(out, labels)
        tokens = {"encoder.norm": out.encoded, "latent": out.latent, "logits": out.logits}
        tokens["alignment.target"] = out.latent_target
        return {**tokens, "loss_main": main, "loss_align": align, "loss": main + align}

    def loss(self) -> Tensor:
        """Both losses together."""
        images, mask, labels = self.tensors()
        main, align = self._losses(self.model(images, mask), labels)
        return main + align

    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """See `oracle.cae.forward`."""
        images, mask, labels = self.arrays()
        return cae_oracle.forward(parameters, images, mask, labels, self.options())

    def objective(self) -> Objective:
        """The alignment target is held."""
        images, mask, labels = self.arrays()
        options = self.options()
        target = self.oracle(self.parameters())["alignment.target"]
        forward = cae_oracle.forward
        return lambda parameters: float(forward(parameters, images, mask, labels, options, target)["loss"])

    def options(self) -> cae_oracle.CAEOptions:
        """What the parameters do not tell."""
        return cae_oracle.CAEOptions(
            num_heads=self.model.encoder.blocks[0].attn.num_heads,
            decoder_num_heads=self.model.regressor.blocks[0].cross_attn.num_heads,
            align_loss_weight=self.config.dual_loss_weight,
            positions="given" if self.config.abs_pos_emb else "row first",
        )

    def _losses(self, out: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        task: Any = self.task
        main, _ = task.target.loss(out.logits, labels)
        return main, self.config.dual_loss_weight * alignment_loss(out.latent, out.latent_target)

    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]:
        task: Any = self.task
        patches, classes = self.model.encoder.num_patches, self.model.decoder.head.weight.shape[1]
        hidden = np.arange(patches) < task.num_masked
        mask = np.stack([rng.permutation(hidden) for _ in range(batch_size)])
        labels = rng.integers(0, classes, batch_size * task.num_masked)
        return {"images": self._draw_images(batch_size, rng), "mask": mask, "labels": labels}
