"""The outcome of `plsc-mae parity` as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plsc_mae.errors import DataError
from plsc_mae.parity.compare import Comparison, Row, Section

WORST = 5  # rows shown of a section without order
HEAD = """\
# Parity

Does a network compute what the papers and the originals' code say? `plsc-mae parity` runs it beside other code that
does the same and compares what comes out, layer by layer, then gradients and optimizer updates. This page is its
report, of the command below.

- **The oracle** (`plsc_mae/parity/oracle`) is a forward pass of MAE and of CAE in float64 NumPy. It shares no code with
  the networks, and the tests hold it against recordings of the originals and against numbers that these gave in
  float64. It knows no gradients: ours are checked by differences of its loss, on a small network.
- **Originals** run in a process of their own, in an interpreter with PyTorch (`--python`), with the same weights, batch
  and learning rates, in float64: Hugging Face's ViTMAEForPreTraining, or models_mae.py of facebookresearch/mae, or
  models/modeling_cae.py of Atten4Vis/CAE, from a checkout. Code of their age is helped over names that PyTorch, NumPy
  and timm have dropped since.

Random weights leave nothing at zero or one: biases, scales of norms and layer scales have noise on top. Differences
are held against the largest absolute value of their tensor unless it says otherwise. float32 rounds to 6e-8; sums over
a network's width make a few 1e-7 of it, and twenty blocks about 1e-6. The loss of MAE is a mean over some hundred
thousand squares, which Paddle adds up in float32 on CPU: most of its difference comes from there.

To repeat it, and to run originals, the last two from a checkout of the repository that is named:

```bash
plsc-mae parity --random 0
pip install torch torchvision transformers timm==0.3.2    # in any environment; --python names its interpreter
plsc-mae parity --model mae_vit_base_patch16 --reference huggingface
plsc-mae parity --model mae_vit_base_patch16 --reference DIR    # git clone https://github.com/facebookresearch/mae
plsc-mae parity --model cae_base_patch16_224_8k_vocab --reference DIR    # git clone https://github.com/Atten4Vis/CAE
```

The originals' own code is no part of this repository. Its tests run the same programs on stand-ins
(tests/parity/standins.py), which have the public names of facebookresearch/mae and Atten4Vis/CAE and other code behind
them, and on Hugging Face's own code, where the environment variable PARITY_PYTHON names an interpreter that has it.

A checkpoint, of this suite or of another, is checked with its own weights: `plsc-mae parity --checkpoint FILE`. On a
GPU `--amp` checks mixed precision and fused attention, with a `--tolerance` that leaves room for the rounding of
float16 or bfloat16. The exit code is 1 if anything is beyond tolerance.
"""


@dataclass(frozen=True)
class Report:
    """The comparisons of one call and their circumstances.

    Attributes:
        circumstances: command, date, versions, device and so on, by name.
        comparisons: one per network and reference.
        absent: originals whose code was not run.
    """

    circumstances: Mapping[str, str]
    comparisons: Sequence[Comparison]
    absent: Sequence[str] = ()

    def failures(self) -> list[str]:
        """Return a sentence for every section beyond tolerance."""
        return [sentence for comparison in self.comparisons for sentence in comparison.failures()]

    def markdown(self) -> str:
        """Return the whole page."""
        circumstances = [f"| {name} | {value} |" for name, value in self.circumstances.items()]
        lines = ["## This report", "", "| | |", "|---|---|", *circumstances, ""]
        lines += [
            "| network | against | compared | tensors | farthest apart | by | tolerance | verdict |",
            "|---|---|---|--:|---|--:|--:|---|",
        ]
        for comparison in self.comparisons:
            lines += [_summary(comparison, section) for section in comparison.sections]
        lines.append("")
        if self.absent:
            lines.append(f"The code of {' and of '.join(self.absent)} was not run for this report.")
        details = [line for comparison in self.comparisons for line in comparison_lines(comparison)]
        return "\n".join([HEAD, *lines, "", *details]).rstrip() + "\n"

    def json(self) -> str:
        """Return everything, every row included, as JSON."""
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
        """Write a .json or .md file, or both into a folder; returns what was written.

        Raises:
            DataError: it cannot be written.
        """
        files = [path] if path.suffix in (".json", ".md") else [path / "parity.json", path / "parity.md"]
        for file in files:
            text = self.json() if file.suffix == ".json" else self.markdown()
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                raise DataError(f"cannot write {file}: {error.strerror}; choose another --save_path") from None
        return files


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Write one comparison in Markdown: a table per section."""
    yield from (f"## {comparison.network} against {comparison.reference}", "")
    for text in (comparison.versions, comparison.remark):
        if text:
            yield from (f"{text[0].upper()}{text[1:]}.", "")
    for section in comparison.sections:
        yield from (f"### {section.title}", "", section.note, "")
        yield from ("| | largest difference | mean | scale | relative | tolerance | |", "|---|--:|--:|--:|--:|--:|---|")
        shown = section.rows if section.in_order else _farthest(section.rows)
        yield from map(_line, shown)
        if rest := len(section.rows) - len(shown):
            yield f"| {rest} more, nearer | | | | | | |"
        yield ""


def _farthest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows nearest to their tolerance or beyond it."""
    return sorted(rows, key=lambda row: (row.ok, -row.relative / row.tolerance))[:WORST]


def _line(row: Row) -> str:
    numbers = (f"{value:.1e}" for value in (row.largest, row.mean, row.scale, row.relative, row.tolerance))
    return f"| {row.name} | {' | '.join(numbers)} | {_verdict(row.ok)} |"


def _summary(comparison: Comparison, section: Section) -> str:
    worst = section.worst
    what = f"{comparison.network} | {comparison.reference} | {section.title} | {len(section.rows)}"
    ok = all(row.ok for row in section.rows)
    return f"| {what} | {worst.name} | {worst.relative:.1e} | {worst.tolerance:.0e} | {_verdict(ok)} |"


def _verdict(ok: bool) -> str:
    return "ok" if ok else "**beyond**"


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
    # JSON has no infinity and no NaN.
    finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    return {"name": row.name, **finite, "ok": row.ok}
