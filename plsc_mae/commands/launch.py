"""`plsc-mae launch`: starts a command in several processes by Paddle's launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from plsc_mae import runtime
from plsc_mae.config.launch import Launch
from plsc_mae.errors import ConfigError


def run(launch: Launch) -> None:
    """Replace this process by Paddle's launcher, which therefore receives all signals and sets the exit code.

    Raises:
        ConfigError: --devices names GPUs but the run uses the CPU, --master is missing for several machines or is not
            IP:PORT, or the folder of the processes' output cannot be written.
    """
    on_gpu = runtime.has_gpu() and launch.device != "cpu"
    words = launcher_words(launch, on_gpu=on_gpu)
    _create_log_dir(launch.options.log_dir)
    print(f"launch: the output of process N is in {os.path.join(launch.options.log_dir, 'workerlog.N')}", flush=True)
    os.execve(sys.executable, words, launcher_environment(runtime.inherited_environment(), on_gpu=on_gpu))


def _create_log_dir(folder: str) -> None:
    """Create the folder of the processes' output, without which Paddle's launcher ends in a traceback."""
    try:
        os.makedirs(folder, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(
            f"launch cannot write the output of processes to --log_dir {folder}: {reason}; choose another"
        )


def launcher_words(launch: Launch, *, on_gpu: bool) -> list[str]:
    """Return the command line of Paddle's launcher.

    Args:
        launch: the command and the options of the launch.
        on_gpu: True if the processes use the GPUs of this machine.

    Raises:
        ConfigError: --devices or --master does not fit, see `run`.
    """
    config = launch.options
    if config.devices and not on_gpu:
        count = len(config.devices.split(","))
        raise ConfigError(
            f"--devices {config.devices} names GPUs, but this run uses the CPU; give --nproc_per_node {count} instead"
        )
    if config.nnodes > 1 and not config.master:
        raise ConfigError(f"--nnodes {config.nnodes} needs --master IP:PORT, the address of one of the machines")
    host = config.master.rpartition(":")[0]
    if config.master and not host.replace(".", "").isdigit():
        raise ConfigError(f"--master {config.master}: expected IP:PORT; Paddle's launcher waits forever for a name")
    processes = config.nproc_per_node or (None if on_gpu else runtime.available_cores())
    options = {
        "--nproc_per_node": processes,
        "--devices": config.devices or None,
        "--nnodes": config.nnodes if config.nnodes > 1 else None,
        "--master": config.master or None,
        "--rank": config.rank,
        "--log_dir": config.log_dir,
        "--log_level": "WARNING",  # at INFO the launcher prints thirty lines of its settings
    }
    flags = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    # The launcher runs a program directly unless it is a .py file, so the processes import plsc_mae as a package.
    program = [sys.executable, "-m", "plsc_mae"]
    return [sys.executable, "-m", "paddle.distributed.launch", *flags, *program, *launch.command]


def launcher_environment(environ: Mapping[str, str], *, on_gpu: bool) -> dict[str, str]:
    """Return the environment of the launcher; `on_gpu` is True if the processes use GPUs.

    Without GPU, the launcher stops with an IndexError if CUDA_VISIBLE_DEVICES is set, even to an empty text.
    """
    quiet = {"PYTHONWARNINGS": "ignore:No ccache found"}  # Paddle's advice to builders of C++ extensions
    wanted = {**quiet, **environ, "PYTHONUNBUFFERED": "1"}
    if not on_gpu:
        wanted.pop("CUDA_VISIBLE_DEVICES", None)
        wanted["PADDLE_DISTRI_BACKEND"] = "gloo"
    return wanted
