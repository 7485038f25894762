"""Options of `plsc-mae plan`: those of the run that is planned, and where it is to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plsc_mae.config.schema import option
from plsc_mae.config.training import TrainingConfig


@dataclass(kw_only=True, frozen=True)
class PlanOptions:
    """Plan: on which devices, how fast, over how many images."""

    devices: int = option(1, "devices of all nodes together, one process each", within="[1, inf)")
    device_memory: float = option(40.0, "memory of a device, GiB", within="(0, inf)")
    headroom: float = option(
        0.1,
        "share of it left to CUDA, communication, workspaces of kernels and fragmentation: assumed, not counted",
        within="[0, 1)",
    )
    flash: bool = option(True, "the GPUs have flash attention: Ampere and later")
    images_per_second: float | None = option(
        None, "training images per second of all devices together, as `bench step` measures them", within="(0, inf)"
    )
    measure: bool = option(False, "also run two updates here, on random images, and tell their peak memory")
    num_images: int | None = option(
        None, "training images [those of --data_path, else ImageNet-1k's 1281167]", within="[1, inf)"
    )


def planned(configs: Mapping[str, type[TrainingConfig]]) -> dict[str, type[TrainingConfig]]:
    """The config classes of a phase with the options of a plan beside their own."""
    return {
        method: dataclass(kw_only=True, frozen=True)(
            type(f"Plan{cls.__name__}", (PlanOptions, cls), {"__doc__": cls.__doc__, "__module__": __name__})
        )
        for method, cls in configs.items()
    }
