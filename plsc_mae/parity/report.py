"""Reports of `plsc-mae parity` in Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plsc_mae.errors import DataError
from plsc_mae.files import result_replacement
from plsc_mae.parity.compare import Comparison, Row, Section

SIGNS = ("`plsc-mae parity", "arithmetic")  # texts by which a file is recognized as a report
WORST = 5  # largest number of rows that Markdown shows of a section whose rows are not in the order of computation
HEAD = """\
# Parity

Do the networks compute what the papers and the original implementations compute? `plsc-mae parity` runs a network and
independent reference code on the same input. It compares the output of every layer, then gradients and optimizer
updates. This page is the report of the command named below.

There are two kinds of reference:

- **The oracle** (`plsc_mae/parity/oracle`) is a forward pass of MAE, CAE and SimMIM in float64 NumPy. It shares no code
  with the networks. For MAE and CAE the tests compare it with recordings of the original implementations and with
  numbers that these computed in float64. SimMIM's original has not been recorded. The oracle has no backward pass, so
  our gradients are compared with finite differences of its loss, on a small network.
- **Original implementations** run in float64, in a separate process and an interpreter with PyTorch (`--python`), with
  the same weights, batch and learning rates. They are Hugging Face's ViTMAEForPreTraining, and from a checkout
  models_mae.py of facebookresearch/mae or models/modeling_cae.py of Atten4Vis/CAE. Shims supply the names that this
  older code imports and that PyTorch, NumPy and timm have removed since. Packages that Atten4Vis/CAE imports for its
  tokenizers and logs only (einops, requests, attrs, tensorboardX, ftfy, pkg_resources of setuptools) need not be
  installed: empty modules stand in for them.

With random weights, no parameter is exactly 0 or 1: biases, scales of norms and layer scales get noise on top of their
initial constant. Differences are relative to the largest absolute value of their tensor unless a section states another
scale. Expect these magnitudes: float32 rounds to 6e-8, sums over the width of a network give a few 1e-7, and twenty
blocks about 1e-6. MAE's loss is the mean of several hundred thousand squares, which Paddle adds up in float32 on the
CPU. This sum causes most of the difference of the loss.

To repeat this report, and to compare with the original implementations:

```bash
plsc-mae parity --random 0
pip install torch torchvision transformers timm==0.3.2    # in any environment; --python names its interpreter
plsc-mae parity --model mae_vit_base_patch16 --reference huggingface
plsc-mae parity --model mae_vit_base_patch16 --reference DIR    # git clone https://github.com/facebookresearch/mae
plsc-mae parity --model cae_base_patch16_224_8k_vocab --reference DIR    # git clone https://github.com/Atten4Vis/CAE
```

Both original implementations were run on 28 November 2026 (PyTorch 2.13 on a CPU, checkouts efb2a80 of
facebookresearch/mae and a7fd162 of Atten4Vis/CAE, these two networks). The largest relative differences were:

| original | forward | gradients | updates, of at most 1e-3 |
|---|--:|--:|--:|
| facebookresearch/mae | 2.6e-6 | 8.4e-7 | 4.1e-5 |
| Atten4Vis/CAE | 7.1e-7 | 4.7e-6 | 3.7e-4 |

This repository does not contain the original code. Its tests run the same programs on substitutes
(tests/parity/standins.py) with the public names of facebookresearch/mae and Atten4Vis/CAE but code of their own. If the
environment variable PARITY_PYTHON names an interpreter with transformers, they also run Hugging Face's code.

`plsc-mae parity --checkpoint FILE` checks a checkpoint of plsc_mae or of another implementation with its own weights.
On a GPU, `--amp` checks mixed precision and fused attention; choose a `--tolerance` above the rounding of float16 or
bfloat16. The exit code is 1 if any difference exceeds its tolerance.
"""


@dataclass(frozen=True)
class Report:
    """Result of one `plsc-mae parity` command."""

    circumstances: Mapping[str, str]  # command, date, versions, device and similar facts, by name
    comparisons: Sequence[Comparison]  # comparisons of the command, in the order they ran
    absent: Sequence[str] = ()  # titles of the original implementations that were not run

    def failures(self) -> list[str]:
        """Return one sentence for each section with rows beyond tolerance."""
        return [sentence for comparison in self.comparisons for sentence in comparison.failures()]

    def markdown(self) -> str:
        """Return the report as a Markdown page; a section not in the order of computation shows its worst rows only."""
        circumstances = [f"| {name} | {value} |" for name, value in self.circumstances.items()]
        lines = ["## This report", "", "| | |", "|---|---|", *circumstances, ""]
        lines += [
            "| network | reference | compared | tensors | largest difference in | relative | tolerance | result |",
            "|---|---|---|--:|---|--:|--:|---|",
        ]
        for comparison in self.comparisons:
            lines += [_summary(comparison, section) for section in comparison.sections]
        lines.append("")
        if self.absent:
            lines.append(f"Not run for this report: the code of {' and of '.join(self.absent)}.")
        details = [line for comparison in self.comparisons for line in comparison_lines(comparison)]
        return "\n".join([HEAD, *lines, "", *details]).rstrip() + "\n"

    def json(self) -> str:
        """Return the report with all rows as JSON."""
        return json.dumps(
            {
                "ok": not self.failures(),
                "circumstances": dict(self.circumstances),
                "comparisons": [_plain(comparison) for comparison in self.comparisons],
                "absent": list(self.absent),
            },
            indent=1,
        )

    def save(self, path: Path) -> list[Path]:
        """Write the report.

        Args:
            path: a .json or .md file, or a folder for parity.json and parity.md.

        Returns:
            The written files.

        Raises:
            DataError: a file cannot be written, or exists and is not a report.
        """
        files = [path] if path.suffix in (".json", ".md") else [path / "parity.json", path / "parity.md"]
        for file in files:
            text = self.json() if file.suffix == ".json" else self.markdown()
            try:
                with result_replacement(file, SIGNS) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            except OSError as error:
                raise DataError(f"cannot write the report {file}: {error.strerror}; use another --save_path") from None
        return files


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of one comparison in Markdown, with one table per section."""
    yield from (f"## {comparison.network} against {comparison.reference}", "")
    for text in (comparison.versions, comparison.remark):
        if text:
            yield from (f"{text[0].upper()}{text[1:]}.", "")
    for section in comparison.sections:
        yield from (f"### {section.title}", "", section.note, "")
        yield from ("| | largest difference | mean | scale | relative | tolerance | |", "|---|--:|--:|--:|--:|--:|---|")
        shown = section.rows if section.in_order else _worst(section.rows)
        yield from map(_line, shown)
        if rest := len(section.rows) - len(shown):
            yield f"| {rest} more with smaller differences | | | | | | |"
        yield ""


def _worst(rows: Sequence[Row]) -> list[Row]:
    """Return the worst rows, `WORST` at most: failed ones first, then by the ratio of difference to tolerance."""
    return sorted(rows, key=lambda row: (row.ok, -row.relative / row.tolerance))[:WORST]


def _line(row: Row) -> str:
    numbers = (f"{value:.1e}" for value in (row.largest, row.mean, row.scale, row.relative, row.tolerance))
    return f"| {row.name} | {' | '.join(numbers)} | {_result(row.ok)} |"


def _summary(comparison: Comparison, section: Section) -> str:
    worst = section.worst
    compared = f"{comparison.network} | {comparison.reference} | {section.title} | {len(section.rows)}"
    ok = all(row.ok for row in section.rows)
    return f"| {compared} | {worst.name} | {worst.relative:.1e} | {worst.tolerance:.0e} | {_result(ok)} |"


def _result(ok: bool) -> str:
    return "ok" if ok else "**failed**"


def _plain(comparison: Comparison) -> dict[str, Any]:
    sections = [
        {"title": section.title, "note": section.note, "rows": [_plain_row(row) for row in section.rows]}
        for section in comparison.sections
    ]
    return {
        "network": comparison.network,
        "reference": comparison.reference,
        "versions": comparison.versions,
        "remark": comparison.remark,
        "sections": sections,
    }


def _plain_row(row: Row) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ("largest", "mean", "scale", "relative", "tolerance")}
    # JSON cannot represent infinity or NaN.
    finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    return {"name": row.name, **finite, "ok": row.ok}
