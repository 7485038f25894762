"""Write docs/reference/options.md from the declarations of the options: `python scripts/options.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from plsc_mae.cli import COMMANDS, Command
from plsc_mae.config import PHASES
from plsc_mae.config.help import OWN_GROUP, Entry, group_options
from plsc_mae.config.plan import PlanOptions

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
HEAD = """# Options of every command

```bash
plsc-mae pretrain --help                                        # the most frequent options
plsc-mae pretrain --model mae_vit_base_patch16 --help all       # every option of the model's method
```

This page is written by `python scripts/options.py` from the declarations of the options. The value in brackets is the
default, or says what happens without the option. Options that only some methods have end with those methods in
parentheses; where defaults differ, each is listed with its methods. `--mask-ratio` is `--mask_ratio`, and every option
is also a YAML key of the same name without the dashes. Later sources win: default, `--config` (`-c`), `-o key=value`,
flag.
"""
BORROWED = {  # commands with the options of another: the options of their own, and the other command
    "bench step": (None, "pretrain"),
    "bench data": (None, "pretrain"),
    **{f"plan {phase}": (PlanOptions, phase) for phase in PHASES},
}


def page(commands: Mapping[str, Command]) -> str:
    """Return the page: a section for each command with its options by heading."""
    return "\n".join([HEAD, *(line for name, command in commands.items() for line in _section(name, command))])


def _section(name: str, command: Command) -> Iterator[str]:
    yield f"## plsc-mae {name}\n"
    yield f"{command.summary[0].upper()}{command.summary[1:]}.\n"
    configs = command.configs
    if name in BORROWED:
        own, other = BORROWED[name]
        yield f"Takes every option of [{other}](#plsc-mae-{other}){', and:' if own else '.'}\n"
        configs = {"": own} if own else {}
    elif len(configs) > 1:
        yield f"Methods: {', '.join(configs)}. `--model` selects the method, or else `--method`.\n"
    for title, entries in group_options(configs).items():
        yield f"{title}:\n" if title != OWN_GROUP else ""
        yield "| option | meaning |\n|---|---|"
        yield from (_row(entry) for entry in entries)
        yield ""
    yield from _historical(configs)


def _historical(configs: Mapping[str, type]) -> Iterator[str]:
    """Yield the other names of options and the flags that are accepted without effect, of all methods together."""
    aliases = {name: target for cls in configs.values() for name, target in getattr(cls, "aliases", {}).items()}
    if aliases:
        yield "Other names: " + ", ".join(f"`--{name}` is `--{aliases[name]}`" for name in sorted(aliases)) + ".\n"
    retired = sorted({name for cls in configs.values() for name in getattr(cls, "retired", {})})
    if retired:
        yield "Accepted without effect: " + ", ".join(f"`--{name}`" for name in retired) + ".\n"


def _row(entry: Entry) -> str:
    """Return a row of a table; stars outside of code are escaped, because Markdown takes them for emphasis."""
    parts = entry.text.replace("|", "\\|").split("`")
    text = "`".join(part if i % 2 else part.replace("*", "\\*") for i, part in enumerate(parts))
    return f"| `{entry.names}` | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page(COMMANDS), encoding="utf-8")
