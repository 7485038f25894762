"""`plsc-mae doctor`: shows versions, devices, data and processes, and reports known problems with them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator

from plsc_mae import runtime
from plsc_mae.commands import doctor_gpu, doctor_machine
from plsc_mae.commands.doctor_data import DataOptions, examine_data
from plsc_mae.commands.doctor_findings import Finding, error
from plsc_mae.commands.doctor_sizes import SQUARE
from plsc_mae.config.runs import DoctorConfig
from plsc_mae.data.pixels import RGB_CHANNELS, PixelFormat
from plsc_mae.errors import ConfigError
from plsc_mae.names import escape_controls
from plsc_mae.wording import counted

NO_GPU = 3  # exit code of --gpu without a GPU: the checks work, but nothing was measured


def run(config: DoctorConfig) -> int:
    """Print the state of the machine, then the problems found: errors with `!`, warnings with `?`.

    With --data_path, print that of the data set instead, and of the machine only the problems, after those of the data;
    --distributed and --gpu print both.

    Returns:
        1 if there is an error, else NO_GPU if --gpu found no GPU, else 0; with --distributed, 1 also if another process
        of the launch has an error.

    Raises:
        ConfigError: --pixel_range is malformed, the processes of a launch cannot use their device, or the report of
            --gpu cannot be written or its file exists and is not a report.
    """
    shown = not config.data_path or config.distributed or config.gpu
    findings = _report(_examine_installation(), shown=shown)
    works = not any(finding.stops for finding in findings)
    if works:
        findings += _report(_examine_machine(config), shown=shown)
    size = config.input_size or SQUARE
    if config.patch_size and works:
        findings += _report(_examine_patches((size[0], size[-1]), config.patch_size))
    if config.data_path:
        findings = _report(examine_data(_data_options(config, (size[0], size[-1])))) + findings
    if not shown:
        print("machine: checked too; `plsc-mae doctor` without --data_path shows its versions and settings", flush=True)
    if config.distributed and works:
        findings += _report(_examine_launch(findings))
    if config.gpu and works:
        findings += _report(_compute_on_gpus(config))
    for finding in sorted(findings, key=lambda found: not found.stops):
        print(escape_controls(str(finding)), flush=True)
    if not findings:
        print("no problems found", flush=True)
    if any(finding.stops for finding in findings):
        return 1
    return NO_GPU if config.gpu and not _visible_gpus() else 0


def _data_options(config: DoctorConfig, input_size: tuple[int, int]) -> DataOptions:
    pixel_format, auto = PixelFormat(config.wanted_channels or RGB_CHANNELS, config.bands or ()), False
    if config.pixel_range is not None:
        from plsc_mae.loading.pixel_settings import AUTO, parse  # these need Paddle

        auto = config.pixel_range == (AUTO,)
        pixel_format = pixel_format._replace(range=None if auto else parse(config.pixel_range))
    sizes = input_size, config.patch_size or 0
    return DataOptions(config.data_path, config.eval_data_path, pixel_format, auto, *sizes)


def _visible_gpus() -> int:
    import paddle

    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


def _compute_on_gpus(config: DoctorConfig) -> Iterator[str | Finding]:
    from plsc_mae.commands.doctor_gpu_checks import REPORT, examine_by_computing, examine_launched, is_launched
    from plsc_mae.gpu_check.catalog import MINUTES

    if is_launched():
        return examine_launched(config.report or "")
    return examine_by_computing(
        _visible_gpus(), doctor_gpu.read_driver(), config.report or REPORT, config.gpu_minutes or MINUTES
    )


def _report(items: Iterable[str | Finding], *, shown: bool = True) -> list[Finding]:
    """Print each description as soon as it is available, if `shown`, and return the findings."""
    findings = []
    for item in items:
        if isinstance(item, Finding):
            findings.append(item)
        elif shown:
            print(escape_controls(item), flush=True)
    return findings


def _examine_installation() -> Iterator[str | Finding]:
    yield f"Python {platform.python_version()} on {platform.platform()}"
    for name in doctor_machine.PACKAGES:
        yield f"  {name:<22} {doctor_machine.version(name) or '-'}"
    yield from doctor_machine.examine_packages()
    try:
        import paddle  # noqa: F401
    except Exception as failure:  # a broken wheel or dependency raises exceptions of many types
        yield error(f"Paddle cannot be imported: {' '.join(str(failure).split())[:300]}; reinstall it")


def _examine_machine(config: DoctorConfig) -> Iterator[str | Finding]:
    import paddle

    gpus = _visible_gpus()
    yield f"devices: {counted(runtime.available_cores(), 'CPU core')}, {counted(gpus, 'GPU')} visible to Paddle"
    driver = doctor_gpu.read_driver()
    if isinstance(driver, doctor_gpu.Driver):
        yield f"{driver}; its wheel: {doctor_gpu.fitting_wheel(driver)}"
    wheel = doctor_gpu.Wheel(paddle.__version__, doctor_gpu.parse_version(paddle.version.cuda()), gpus)
    yield from doctor_gpu.examine_gpus(driver, wheel)
    settings = {name: os.environ[name] for name in runtime.SETTINGS if name in os.environ}
    listed = " ".join(f"{name}={value}" for name, value in settings.items()) or "none"
    yield f"CPU settings: {listed} (switch off with {runtime.SWITCH}=off)"
    if os.path.isdir(doctor_machine.SHARED_MEMORY):
        yield f"{doctor_machine.SHARED_MEMORY}: {shutil.disk_usage(doctor_machine.SHARED_MEMORY).free // 2**20} MB free"
    yield doctor_machine.describe_launch()
    yield from doctor_machine.examine_optional_modules()
    yield from doctor_machine.examine_environment(gpus)
    yield from doctor_machine.examine_limits(gpus)
    if config.output_dir:
        yield from doctor_machine.examine_output(config.output_dir)


def _examine_patches(input_size: tuple[int, int], patch_size: int) -> Iterator[str | Finding]:
    from plsc_mae.models.vit import patch_grid

    try:
        rows, columns = patch_grid(input_size, patch_size)
        yield f"patches: {rows} rows and {columns} columns"
    except ConfigError as failure:
        yield error(str(failure))


def _examine_launch(before: list[Finding]) -> Iterator[str | Finding]:
    """Check the processes of a launch together; all processes must iterate to the end.

    If a process has an error, in these checks or in `before`, every process reports an error.
    """
    import paddle

    from plsc_mae.commands.doctor_processes import examine_processes
    from plsc_mae.parallel.world import World

    world = World("auto")
    own = list(before)
    for item in examine_processes(world):
        if isinstance(item, Finding):
            own.append(item)
        yield item
    stops = any(finding.stops for finding in own)
    stopped = int(world.sum(paddle.to_tensor([int(stops)], dtype="int64")).item())
    if stopped and not stops:
        yield error(f"{stopped} of {world.size} processes found an error: see their logs in the launcher's --log_dir")
