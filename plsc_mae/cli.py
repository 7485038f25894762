"""`plsc-mae COMMAND [options]`: find the command, resolve its options, run it. Paddle is imported by the run only."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plsc_mae
from plsc_mae import runtime
from plsc_mae.config import FINETUNE, LINPROBE, PHASES, PRETRAIN
from plsc_mae.config.parity import ParityConfig
from plsc_mae.config.plan import planned
from plsc_mae.config.resolve import parse
from plsc_mae.config.schema import suggest
from plsc_mae.config.tools import (
    CompareConfig,
    DemoDataConfig,
    DoctorConfig,
    ExplainConfig,
    ExtractConfig,
    KNNConfig,
    PlotConfig,
    PredictConfig,
    RandomTokenizerConfig,
    ReconstructConfig,
)
from plsc_mae.config.weights import (
    WeightsConvertConfig,
    WeightsDiffConfig,
    WeightsFetchConfig,
    WeightsInspectConfig,
    WeightsListConfig,
)
from plsc_mae.errors import ConfigError, Stopped, UserError
from plsc_mae.parallel import failure_detector


class Command(NamedTuple):
    """A command: what it does, its options by method, its function and the options that may be bare words.

    The function may return an exit code.
    """

    summary: str
    configs: Mapping[str, type]
    run: str
    positional: str = ""


COMMANDS = {
    "pretrain": Command("pre-train an encoder on images without labels", PRETRAIN, "plsc_mae.commands.pretrain:run"),
    "finetune": Command("train a classifier from a pre-trained encoder", FINETUNE, "plsc_mae.commands.classify:run"),
    "linprobe": Command("train a linear classifier on frozen features", LINPROBE, "plsc_mae.commands.classify:run"),
    "reconstruct": Command(
        "redraw hidden patches with a pre-trained model",
        {"": ReconstructConfig},
        "plsc_mae.commands.reconstruct:run",
        "img_path save_path model_path",
    ),
    "predict": Command(
        "tell the classes of images by a trained classifier", {"": PredictConfig}, "plsc_mae.commands.predict:run"
    ),
    "knn": Command("classify by nearest neighbors of features", {"": KNNConfig}, "plsc_mae.commands.knn:run"),
    "compare": Command(
        "classify by features of several encoders, random weights and raw pixels, in one table",
        {"": CompareConfig},
        "plsc_mae.commands.compare:run",
    ),
    "explain": Command("draw what an encoder attends to", {"": ExplainConfig}, "plsc_mae.commands.explain:run"),
    "extract": Command("write features of images to a file", {"": ExtractConfig}, "plsc_mae.commands.extract:run"),
    "parity": Command(
        "compare a network with an oracle and with the originals' code, layer by layer",
        {"": ParityConfig},
        "plsc_mae.commands.parity:run",
    ),
    "demo-data": Command(
        "draw a small labeled image folder to try things on",
        {"": DemoDataConfig},
        "plsc_mae.commands.demo_data:run",
        "path",
    ),
    "random-tokenizer": Command(
        "write a dVAE of random weights to try CAE on",
        {"": RandomTokenizerConfig},
        "plsc_mae.commands.random_tokenizer:run",
        "path",
    ),
    "weights inspect": Command(
        "tell what a weight file holds and is good for",
        {"": WeightsInspectConfig},
        "plsc_mae.commands.weights:run_inspect",
        "path",
    ),
    "weights convert": Command(
        "write a weight file for another code base",
        {"": WeightsConvertConfig},
        "plsc_mae.commands.convert:run",
        "path out",
    ),
    "weights list": Command(
        "list published weight files", {"": WeightsListConfig}, "plsc_mae.commands.weights:run_list", "pattern"
    ),
    "weights fetch": Command(
        "download a published weight file", {"": WeightsFetchConfig}, "plsc_mae.commands.weights:run_fetch", "name"
    ),
    "weights diff": Command(
        "compare two weight files tensor by tensor",
        {"": WeightsDiffConfig},
        "plsc_mae.commands.weights:run_diff",
        "a b",
    ),
    "plot": Command("draw a run's loss curve as PNG", {"": PlotConfig}, "plsc_mae.commands.plot:run", "run_dir"),
    "bench step": Command("measure training steps", PRETRAIN, "plsc_mae.commands.bench:run_step"),
    "bench data": Command("measure the data path", PRETRAIN, "plsc_mae.commands.bench:run_data"),
    **{
        f"plan {phase}": Command(f"tell what a {phase} run would cost", planned(configs), "plsc_mae.commands.plan:run")
        for phase, configs in PHASES.items()
    },
    "doctor": Command("show versions, settings and what is amiss", {"": DoctorConfig}, "plsc_mae.commands.doctor:run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    The user's mistakes end in one sentence on stderr; ours keep their traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _log_to_console()
    try:
        name, rest = _find(argv)
        if not name:
            print(_overview())
            return 0
        command = COMMANDS[name]
        config = parse(rest, command.configs, prog=f"plsc-mae {name}", positional=command.positional)
        runtime.apply_cpu_settings()
        warnings.filterwarnings("ignore", message="No ccache found")  # Paddle's advice to builders of C++ extensions
        module, _, function = command.run.partition(":")
        code = getattr(importlib.import_module(module), function)(config)
    except UserError as error:
        print(f"plsc-mae: error: {error}", file=sys.stderr)
        return failure_detector.end(str(error), error.exit_code)
    except Stopped as stop:
        print(f"plsc-mae: {stop}", file=sys.stderr)
        failure_detector.report_success()
        return stop.exit_code
    except KeyboardInterrupt:
        print("plsc-mae: interrupted", file=sys.stderr)
        return failure_detector.end("interrupted", 130)
    except Exception as error:
        failure_detector.end_by(error)
    failure_detector.report_success()
    return code or 0


def _find(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Split argv into the command's name and its words; an empty name asks for the overview."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        return "", []
    if argv[0] == "--version":
        print(plsc_mae.__version__)
        raise SystemExit(0)
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in COMMANDS:
            return name, list(argv[words:])
    family = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    hint = f"; did you mean '{family[0]}'?" if family else suggest(argv[0], COMMANDS)
    raise ConfigError(f"unknown command '{argv[0]}'{hint or '; plsc-mae --help lists them'}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return (
        f"plsc_mae {plsc_mae.__version__}: masked image modeling in PaddlePaddle\n\n"
        "usage: plsc-mae COMMAND [options]\n\n" + "\n".join(lines) + "\n\nplsc-mae COMMAND --help lists the options."
    )


def _log_to_console() -> None:
    """Log what matters to stdout, warnings to stderr; processes other than the first tell warnings only."""
    rank = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    alarm = logging.StreamHandler(sys.stderr)
    alarm.setLevel(logging.WARNING)
    alarm.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("plsc_mae")
    log.handlers = [handler, alarm]
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False
