"""The program `plsc-mae`: it finds the command, resolves its options and runs it.

Paddle is imported only when the command runs.
"""

from __future__ import annotations

import importlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plsc_mae
from plsc_mae import console
from plsc_mae.config import FINETUNE, LINPROBE, PHASES, PRETRAIN, TrainingConfig
from plsc_mae.config.completion import Completed, completion_parser
from plsc_mae.config.data_sets import DemoDataConfig, PrepareDataConfig, RandomTokenizerConfig, SplitConfig, StatsConfig
from plsc_mae.config.export import ExportConfig
from plsc_mae.config.features import CompareConfig, ExtractConfig, FewshotConfig, KNNConfig, SegprobeConfig
from plsc_mae.config.inference import ExplainConfig, PredictConfig, ReconstructConfig
from plsc_mae.config.launch import Launch, LaunchConfig, split_launch
from plsc_mae.config.parity import ParityConfig
from plsc_mae.config.plan import planned
from plsc_mae.config.resolve import parse
from plsc_mae.config.runs import BoardConfig, ConfigsConfig, DoctorConfig, PlotConfig, ReportConfig, RunsConfig
from plsc_mae.config.schema import suggest, vocabulary
from plsc_mae.config.synonyms import hint_at_command
from plsc_mae.config.weights import (
    WeightsConvertConfig,
    WeightsDiffConfig,
    WeightsFetchConfig,
    WeightsInspectConfig,
    WeightsListConfig,
)
from plsc_mae.errors import ConfigError, Stopped, UserError, use_flags
from plsc_mae.names import escape_controls, escape_streams
from plsc_mae.parallel import failure_detector


class Command(NamedTuple):
    """A command of `plsc-mae`."""

    summary: str  # one line for the help
    configs: Mapping[str, type]  # config classes by method; a command without methods has one entry, ""
    run: str  # the function, as "module:name". It receives the config and may return an exit code.
    # names, separated by spaces, of the options whose values may be given without their flags, in order
    positional: str = ""
    parallel: bool = False  # True if the command can run in several processes


COMMANDS = {
    "pretrain": Command(
        "pre-train an encoder on images without labels", PRETRAIN, "plsc_mae.commands.pretrain:run", parallel=True
    ),
    "finetune": Command(
        "train a classifier from a pre-trained encoder", FINETUNE, "plsc_mae.commands.classify:run", parallel=True
    ),
    "linprobe": Command(
        "train a linear classifier on frozen features", LINPROBE, "plsc_mae.commands.classify:run", parallel=True
    ),
    "reconstruct": Command(
        "reconstruct hidden patches with a pre-trained model",
        {"": ReconstructConfig},
        "plsc_mae.commands.reconstruct:run",
        "img_path save_path model_path",
    ),
    "predict": Command(
        "classify images with a trained classifier",
        {"": PredictConfig},
        "plsc_mae.commands.predict:run",
        parallel=True,
    ),
    "knn": Command(
        "evaluate an encoder's features by k-NN", {"": KNNConfig}, "plsc_mae.commands.knn:run", parallel=True
    ),
    "fewshot": Command(
        "evaluate an encoder's features with few labels",
        {"": FewshotConfig},
        "plsc_mae.commands.fewshot:run",
        parallel=True,
    ),
    "compare": Command(
        "compare the features of several encoders in one table",
        {"": CompareConfig},
        "plsc_mae.commands.compare:run",
        parallel=True,
    ),
    "segprobe": Command(
        "evaluate an encoder's patch features by segmentation",
        {"": SegprobeConfig},
        "plsc_mae.commands.segprobe:run",
    ),
    "explain": Command(
        "draw the attention of an encoder over images", {"": ExplainConfig}, "plsc_mae.commands.explain:run"
    ),
    "extract": Command(
        "write features of images to a file", {"": ExtractConfig}, "plsc_mae.commands.extract:run", parallel=True
    ),
    "stats": Command(
        "measure mean and standard deviation of every channel of a data set",
        {"": StatsConfig},
        "plsc_mae.commands.stats:run",
        "data_path",
    ),
    "export": Command(
        "write a network for another program or library", {"": ExportConfig}, "plsc_mae.commands.export:run"
    ),
    "parity": Command(
        "compare a network with an oracle and with the original code",
        {"": ParityConfig},
        "plsc_mae.commands.parity:run",
    ),
    "demo-data": Command(
        "draw a small labeled image folder for trials",
        {"": DemoDataConfig},
        "plsc_mae.commands.trial_inputs:run_demo_data",
        "path",
    ),
    "split": Command(
        "divide labeled images into training and validation images",
        {"": SplitConfig},
        "plsc_mae.commands.split:run",
        "src dst",
    ),
    "prepare-data": Command(
        "pack images into tar shards with an index, resized or unchanged",
        {"": PrepareDataConfig},
        "plsc_mae.commands.prepare_data:run",
        "src dst",
    ),
    "random-tokenizer": Command(
        "write a dVAE with random weights, for trials of CAE",
        {"": RandomTokenizerConfig},
        "plsc_mae.commands.trial_inputs:run_random_tokenizer",
        "path",
    ),
    "weights inspect": Command(
        "describe a weight file and the commands that can use it",
        {"": WeightsInspectConfig},
        "plsc_mae.commands.weights:run_inspect",
        "path",
    ),
    "weights convert": Command(
        "convert a weight file for another code base",
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
    "configs": Command(
        "list the recipes for --config, with published results and cost, or print one",
        {"": ConfigsConfig},
        "plsc_mae.commands.configs:run",
        "recipe",
    ),
    "board": Command(
        "show runs in the browser while they train (VisualDL)", {"": BoardConfig}, "plsc_mae.commands.board:run", "runs"
    ),
    "plot": Command("draw the loss curve of a run as PNG", {"": PlotConfig}, "plsc_mae.commands.plot:run", "run_dir"),
    "report": Command(
        "write a report of a run as one HTML file", {"": ReportConfig}, "plsc_mae.commands.report:run", "run_dir"
    ),
    "runs": Command(
        "compare the curves, numbers and options of several runs",
        {"": RunsConfig},
        "plsc_mae.commands.runs:run",
        "run_dirs",
    ),
    "bench step": Command(
        "measure the speed of training steps", PRETRAIN, "plsc_mae.commands.bench:run_step", parallel=True
    ),
    "bench data": Command(
        "measure the speed of data loading", PRETRAIN, "plsc_mae.commands.bench:run_data", parallel=True
    ),
    **{
        f"plan {phase}": Command(
            f"estimate memory and time of `{phase}`", planned(configs), "plsc_mae.commands.plan:run"
        )
        for phase, configs in PHASES.items()
    },
    "doctor": Command(
        "show versions and settings, and report known problems",
        {"": DoctorConfig},
        "plsc_mae.commands.doctor:run",
        parallel=True,
    ),
    "launch": Command("start a command in several processes", {"": LaunchConfig}, "plsc_mae.commands.launch:run"),
}

HEADINGS = {  # of the overview; a command belongs to the heading that lists its first word
    "Train": ("pretrain", "finetune", "linprobe", "launch", "configs", "board"),
    "Evaluate": ("reconstruct", "predict", "knn", "fewshot", "compare", "segprobe", "explain", "extract"),
    "Weights": ("weights", "export"),
    "Tools": (
        "plan",
        "bench",
        "plot",
        "report",
        "runs",
        "doctor",
        "parity",
        "split",
        "prepare-data",
        "demo-data",
        "random-tokenizer",
        "stats",
    ),
}
BROKEN_PIPE = 128 + 13  # exit code that a shell reports for a program ended by SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    A user's mistake is reported as one sentence on stderr; a bug of plsc_mae keeps its traceback. After either, and
    after Ctrl-C, a process that has joined others ends here instead of returning. If the reader of standard output
    closes it early, as in `plsc-mae ... | head -1`, the program ends silently.

    Raises:
        SystemExit: with code 0 after `--help` of a command or `--version`.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return BROKEN_PIPE


def _run(argv: list[str]) -> int:
    escape_streams()
    console.log_to_console(main=int(os.environ.get("PADDLE_TRAINER_ID", "0")) == 0)
    try:
        name, rest = _find(argv)
        if not name:
            print(_overview(*rest))
            return 0
        command = COMMANDS[name]
        with console.deferring_lines():
            config = _resolve_launch(rest) if name == "launch" else _resolve(name, rest)
            if isinstance(config, TrainingConfig):
                console.use_style(quiet=config.quiet, as_json=config.json)
        own = config.options if isinstance(config, Launch) else config
        use_flags(vocabulary(type(own)) | (set() if "" in command.configs else {"method"}))
        warnings.filterwarnings("ignore", message="No ccache found")  # Paddle's advice to builders of C++ extensions
        module, _, function = command.run.partition(":")
        run = getattr(importlib.import_module(module), function)
        console.let_interrupts_raise()
        code = run(config)
    except UserError as error:
        for sentence in error.args:
            console.write_error(f"plsc-mae: error: {escape_controls(str(sentence), one_line=True)}")
        return failure_detector.end(str(error), error.exit_code)
    except Stopped as stop:
        console.write_error(f"plsc-mae: {stop}")
        failure_detector.report_success()
        return stop.exit_code
    except KeyboardInterrupt as interrupt:
        details = f": {interrupt}" if str(interrupt) else ""
        console.write_error(f"plsc-mae: interrupted{details}", interrupted=True)
        return failure_detector.end("interrupted", 130)
    except Exception as error:
        failure_detector.end_by(error)
    finally:
        use_flags(None)
        console.use_style()
    failure_detector.report_success()
    return code or 0


def _resolve(name: str, words: Sequence[str]) -> Any:
    command = COMMANDS[name]
    return parse(
        words, command.configs, prog=f"plsc-mae {name}", positional=command.positional, summary=command.summary
    )


def _resolve_launch(words: Sequence[str]) -> Launch:
    """Resolve the words after `launch`, and check those of the command to start before any process starts."""
    own, started = split_launch(words)
    options: LaunchConfig = _resolve("launch", own)
    parallel = ", ".join(name for name, command in COMMANDS.items() if command.parallel)
    if not started:
        raise ConfigError(
            f"name the command to start: plsc-mae launch --nproc_per_node N COMMAND; it may be {parallel}"
        )
    name, rest = _find(started)
    if not name or not COMMANDS[name].parallel:
        raise ConfigError(f"{name or started[0]} runs in one process; launch starts {parallel}")
    log = logging.getLogger("plsc_mae")
    level = log.level
    log.setLevel(logging.ERROR)  # the started processes log the warnings
    device = getattr(_resolve(name, rest), "device", "auto")
    log.setLevel(level)
    return Launch(options, started, device)


def complete() -> None:
    """Answer the shell's request for completions, see docs/install.md; do nothing without the package argcomplete."""
    try:
        import argcomplete
    except ImportError:
        return
    commands = {name: Completed(c.configs, c.positional, c.parallel) for name, c in COMMANDS.items()}
    argcomplete.autocomplete(completion_parser(commands, os.environ.get("COMP_LINE", "").split()))


def _output_is_closed() -> bool:
    """Return True if the reader of standard output has closed it; in that case discard the rest of the output."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit succeeds
    return closed


def _find(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return (command, its arguments); ("", []) for the overview, ("", [prefix]) for the overview of a family."""
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
    if family and argv[1:2] in ([], ["-h"], ["--help"]):
        return "", [f"{argv[0]} "]
    name = " ".join(argv[: 2 if family else 1])
    hint = "" if family else hint_at_command(name, COMMANDS)
    hint = hint or suggest(name, family or COMMANDS) or f"; plsc-mae {f'{argv[0]} ' if family else ''}--help lists them"
    raise ConfigError(f"unknown command '{name}'{hint}")


def _overview(prefix: str = "") -> str:
    """Return the list of the commands whose names start with `prefix`, by heading."""
    width = max(map(len, COMMANDS))
    sections = []
    for heading, words in HEADINGS.items():
        names = [name for word in words for name in COMMANDS if name.split()[0] == word and name.startswith(prefix)]
        lines = [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]
        sections += ["\n".join([f"{heading}:", *lines, ""])] if names else []
    return "\n".join(
        [
            f"plsc_mae {plsc_mae.__version__}: masked image modeling in PaddlePaddle\n",
            "usage: plsc-mae COMMAND [options]\n",
            *sections,
            "plsc-mae COMMAND --help shows the most frequent options of a command,",
            "plsc-mae COMMAND --help all shows all of them.",
        ]
    )
