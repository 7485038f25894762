"""The report file of `plsc-mae doctor --gpu`; `anonymous` replaces absolute paths and the names of user and machine."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import paddle

import plsc_mae
from plsc_mae.files import MARK
from plsc_mae.gpu_check.results import Result

_SHORT = 3  # characters; shorter names may be words of the text
_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\][^\s'\"`,;:()\[\]]+")  # absolute, or below a home folder


def build_report(results: Sequence[Result], *, gpu: bool, gpus: Sequence[str], driver: str) -> dict[str, Any]:
    """Return the report as JSON values."""
    report = {
        "note": f"GPU checks, {MARK}",
        "measured_on_gpu": gpu,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": {
            "plsc_mae": plsc_mae.__version__,
            "paddle": paddle.__version__,
            "cuda": str(paddle.version.cuda()),
            "cudnn": str(paddle.version.cudnn()),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "gpus": list(gpus),
        "driver": driver,
        "checks": [result._asdict() for result in results],
    }
    return {name: _anonymous(value) for name, value in report.items()}


def _anonymous(value: Any) -> Any:
    """Return a JSON value with `anonymous` applied to its texts and names, and with infinities and NaN as text."""
    if isinstance(value, dict):
        return {_anonymous(name): _anonymous(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_anonymous(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return anonymous(value) if isinstance(value, str) else value


def anonymous(text: str) -> str:
    """Replace absolute paths, and the names of this user and this machine by USER and HOST.

    A path is replaced by its last component if that has a dot, else by PATH. A path ends at a space, so the rest of a
    folder name with spaces stays. Names of fewer than _SHORT characters stay too.
    """
    text = _PATH.sub(lambda found: name if "." in (name := re.split(r"[/\\\\]", found[0])[-1]) else "PATH", text)
    for name, stand_in in ((_user(), "USER"), (socket.gethostname(), "HOST")):
        if len(name) >= _SHORT:
            text = re.sub(rf"\b{re.escape(name)}\b", stand_in, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have a user id without a name
        return ""


def as_json(report: dict[str, Any]) -> str:
    """Return the report as the JSON text of its file."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"
