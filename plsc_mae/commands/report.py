"""`plsc-mae report`: writes a report of a run as one HTML file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from plsc_mae.commands.pictures import save_png
from plsc_mae.commands.report_pictures import encoder_pictures
from plsc_mae.config.runs import ReportConfig
from plsc_mae.errors import DataError, UserError
from plsc_mae.files import MARK, refuse_foreign
from plsc_mae.names import escape_name
from plsc_mae.report import sections
from plsc_mae.report.page import page, paragraph, picture, table, write_page
from plsc_mae.report.run_folder import RunFolder, read_run
from plsc_mae.report.verdict import judge

logger = logging.getLogger(__name__)


def run(config: ReportConfig) -> None:
    """Write the report, and print the answer to "is it learning?" and the path of the file.

    Raises:
        DataError: the folder is not that of a run, a table cannot be read, or a file cannot be written.
    """
    folder = Path(config.run_dir)
    found = read_run(folder)
    path = Path(config.save_path or folder / "report.html")
    try:
        refuse_foreign(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    tables = "".join(_table(Path(name)) for name in config.tables)
    drawn = _encoder_pictures(config, found)
    phase = " ".join(str(found.options.get(name, "")) for name in ("method", "phase", "model"))
    content = (
        ("Is it learning?", sections.learning(found)),
        ("Classes", sections.classes(found)),
        ("Published log", sections.published(found)),
        ("Curves", sections.charts(found)),
        ("Representation", sections.representation(found)),
        ("Pictures over time", sections.pictures(found)),
        ("Attention and tokens", drawn),
        ("Evaluations", sections.evaluations(found) + tables),
        ("Speed", sections.speed(found)),
        ("Starts and ends", sections.starts(found)),
        ("Warnings", sections.warnings(found)),
        ("Environment", sections.environment(found)),
        ("Options", sections.options(found)),
        ("Not in this report", sections.lacking(found)),
    )
    write_page(path, page(f"{escape_name(found.name)}: plsc-mae report", f"{phase} {found.run}".strip(), content))
    print(*judge(found).lines, path, sep="\n")


def _encoder_pictures(config: ReportConfig, found: RunFolder) -> str:
    """Return pictures of attention and tokens of the newest checkpoint as HTML; "" if they are not wanted or fail.

    The reason for a failure is added to `found.lacking`, which the report lists.
    """
    if not config.max_images:
        return ""
    try:
        images, caption = encoder_pictures(config, found)
    except UserError as error:
        found.lacking.append(f"pictures of attention and tokens: {error}")
        return ""
    if config.panel_path:
        print(save_png(images, Path(config.panel_path), f"{MARK} report", "--panel_path"))
    return paragraph(caption, "sub") + picture(images, "attention and tokens")


def _table(path: Path) -> str:
    """Return a result of `compare` as HTML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            rows = json.loads(text)
            lines = [[str(row["features"]), *map(_mean, (row["knn"], row["linear"]))] for row in rows]
            return table(("features", "k-NN top-1 in %", "linear top-1 in %"), lines)
        cells = [
            [cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if line[:1] == "|"
        ]
        head, _, *body = cells
    except OSError as error:
        raise DataError(f"cannot read --tables {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        raise DataError(f"--tables {path} is not a table of plsc-mae compare; expected its --save_path") from None
    return table(head, body)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
