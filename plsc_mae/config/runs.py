"""Options of the commands about recipes, runs and this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.features import DEVICE_HELP, IMAGES_HELP
from plsc_mae.config.pixels import (
    PICTURE_BANDS,
    FormatOptions,
    PixelOptions,
    channel_contradictions,
    input_size_contradictions,
)
from plsc_mae.config.schema import Checked, option
from plsc_mae.config.weights import NetworkOptions


@dataclass(kw_only=True, frozen=True)
class DoctorConfig(FormatOptions):
    """Options of `doctor`."""

    data_path: str = option("", "image folder or list file to check too", metavar="PATH")
    eval_data_path: str = option("", "folder or list file of validation images [DATA_PATH/val]", metavar="PATH")
    input_size: tuple[int, ...] | None = option(
        None,
        "image side in pixels, or height and width, of the planned run, to compare the sizes of the images with [224]",
        within="[1, inf)",
    )
    patch_size: int | None = option(
        None, "patch side in pixels of the planned run, which must divide its input size", within="[1, inf)"
    )
    output_dir: str = option("", "output folder to check for write access")
    distributed: bool = option(False, "check the processes of a launch too")
    gpu: bool = option(
        False,
        "compute on the GPUs too, for at most --gpu_minutes: kernels, copies, attention, mixed precision, determinism, "
        "speed, collectives; without a GPU, these checks test themselves on the CPU",
    )
    gpu_minutes: float | None = option(
        None, "limit of all checks of --gpu; the limit of each check grows with it [3]", within="[1, inf)"
    )
    report: str | None = option(None, "report file of --gpu [gpu-report.json]", metavar="FILE")

    def _contradictions(self) -> Iterator[str]:
        for name in ("gpu_minutes", "report"):
            if getattr(self, name) is not None and not self.gpu:
                yield f"--{name} has no effect without --gpu, because it is for the GPU checks only"
        about_images = ("eval_data_path", "in_chans", "bands", "pixel_range")
        for name in about_images if self.patch_size else (*about_images, "input_size"):
            if getattr(self, name) and not self.data_path:
                yield f"--{name} has no effect without --data_path, because it is about images"
        yield from input_size_contradictions(self.input_size or ())
        yield from channel_contradictions(self.in_chans, self.bands, None, None)


@dataclass(kw_only=True, frozen=True)
class ConfigsConfig:
    """Options of `configs`, which lists recipes or prints one."""

    recipe: str = option(
        "",
        "recipe to print; or folder, pattern or part of a name of recipes to list, for example '*linprobe*' [all]",
    )


@dataclass(kw_only=True, frozen=True)
class PlotConfig(Checked):
    """Options of `plot`."""

    run_dir: str = option("", "output folder of the run")
    metrics: tuple[str, ...] = option(
        ("loss",), "names in train.jsonl or log.txt to draw in one picture", metavar="NAME"
    )
    save_path: str | None = option(
        None, "picture to write, .png, .svg or .pdf [RUN_DIR/METRIC.png, after the first metric]", metavar="FILE"
    )

    def _contradictions(self) -> Iterator[str]:
        if not self.run_dir:
            yield "name the run's output folder: plsc-mae plot RUN_DIR"


@dataclass(kw_only=True, frozen=True)
class ReportConfig(PixelOptions, NetworkOptions):
    """Options of `report`."""

    run_dir: str = option("", "output folder of the run", metavar="DIR")
    save_path: str = option("", "HTML file to write [RUN_DIR/report.html]", metavar="FILE")
    img_path: str = option(
        "", f"images for the pictures of attention and tokens: {IMAGES_HELP} [the run's]", metavar="PATH"
    )
    picture_bands: tuple[int, ...] | None = option(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    max_images: int = option(
        4, "number of these images; 0 leaves the pictures out and loads no network", within="[0, inf)"
    )
    panel_path: str = option("", "PNG file to write the pictures of attention and tokens to as well", metavar="FILE")
    tables: tuple[str, ...] = option((), "tables of `compare` to include, .md or .json", metavar="FILE")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", DEVICE_HELP)

    def _contradictions(self) -> Iterator[str]:
        if not self.run_dir:
            yield "name the run's output folder: plsc-mae report RUN_DIR"


@dataclass(kw_only=True, frozen=True)
class RunsConfig(Checked):
    """Options of `runs`."""

    run_dirs: tuple[str, ...] = option((), "output folders of the runs", metavar="DIR")
    save_path: str = option("runs.html", "HTML file to write", metavar="FILE")

    def _contradictions(self) -> Iterator[str]:
        if not self.run_dirs:
            yield "name the runs' output folders: plsc-mae runs RUN_DIR RUN_DIR"


@dataclass(kw_only=True, frozen=True)
class BoardConfig(Checked):
    """Options of `board`, which serves VisualDL pages of runs."""

    first_port: ClassVar[int] = 8040  # VisualDL's default

    runs: tuple[str, ...] = option((), "output folders of runs, or folders of several runs", metavar="DIR")
    port: int | None = option(None, "port of the server [the first free one from 8040 on]", within="[1, 65535]")
    host: str = option("localhost", "address to listen on; 0.0.0.0: all, so that other machines can see the pages")
    language: Literal["auto", "en", "zh"] = option("auto", "language of the pages; auto: the locale's, else English")

    def _contradictions(self) -> Iterator[str]:
        if not self.runs:
            yield "name the output folders of runs: plsc-mae board DIR..."
