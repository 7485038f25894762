"""Options of `plsc-mae plan`: those of the planned run, and its devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plsc_mae.config.schema import option
from plsc_mae.config.training import TrainingConfig


@dataclass(kw_only=True, frozen=True)
class PlanOptions:
    """Options of a plan besides those of the run."""

    devices: int = option(1, "devices of all nodes, one process each", within="[1, inf)")
    device_memory: float | None = option(
        None, "memory of a device, GiB [40; with --device cpu this machine's, divided by --devices]", within="(0, inf)"
    )
    headroom: float = option(
        0.1,
        "share of the memory reserved for CUDA, communication, workspaces and fragmentation, which are not planned",
        within="[0, 1)",
    )
    flash: bool | None = option(
        None, "assume GPUs with flash attention (Ampere and later) [if this machine's GPU has it, or there is no GPU]"
    )
    images_per_second: float | None = option(
        None, "training images per second of all devices, as `bench step` measures them", within="(0, inf)"
    )
    measure: bool = option(False, "also run updates here on random images and print their speed and peak memory")
    num_images: int | None = option(
        None, "training images [by default those of --data_path, else the 1281167 of ImageNet-1k]", within="[1, inf)"
    )


if TYPE_CHECKING:

    @dataclass(kw_only=True, frozen=True)
    class PlannedRun(PlanOptions, TrainingConfig):
        """Options of a planned run: those of the run, and its devices."""

else:
    PlannedRun = PlanOptions


def planned(configs: Mapping[str, type[TrainingConfig]]) -> dict[str, type[TrainingConfig]]:
    """Return the config classes of a phase by method, extended by the options of a plan."""
    return {
        method: dataclass(kw_only=True, frozen=True)(
            type(f"Plan{cls.__name__}", (PlanOptions, cls), {"__doc__": cls.__doc__, "__module__": __name__})
        )
        for method, cls in configs.items()
    }
