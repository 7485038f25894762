"""OpenCV, imported on first use: most commands run without it."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

PACKAGE = "opencv-python-headless"  # opencv-python has the same module, but needs libGL, which servers lack


@functools.cache
def load_opencv() -> ModuleType:
    """Return OpenCV, limited to the calling thread because loader processes already use all cores.

    OpenCV's own log is silent, because a file that it cannot decode is reported with its name. The environment
    variable OPENCV_LOG_LEVEL brings it back.

    Raises:
        ImportError: OpenCV is missing or broken; the message gives the reason and the remedy.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise ImportError(broken(error)) from error
        raise ImportError(f"OpenCV is not installed: pip install {PACKAGE}") from error
    except Exception as error:  # a missing system library is an ImportError, another NumPy may be an AttributeError
        raise ImportError(broken(error)) from error
    cv2.setNumThreads(0)
    if "OPENCV_LOG_LEVEL" not in os.environ:
        log: Any = cv2.utils.logging if hasattr(cv2.utils, "logging") else cv2  # in OpenCV 5, in OpenCV 4
        log.setLogLevel(0)
    module: ModuleType = cv2
    return module


def broken(error: Exception) -> str:
    """Return the sentence about an OpenCV that is installed but fails to import with `error`."""
    reason = " ".join(str(error).split())[:200]
    return (
        f"OpenCV is installed but cannot be imported ({reason}): pip uninstall -y opencv-python {PACKAGE} && "
        f"pip install {PACKAGE}"
    )
