"""ONNX, by paddle2onnx, for any batch size."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from plsc_mae.errors import CheckpointError
from plsc_mae.export.content import Content
from plsc_mae.export.targets.base import MODEL, Code, Target
from plsc_mae.export.targets.inference import trace
from plsc_mae.runtime import inherited_environment

OPSET = 17
# Runs in a process of its own, because paddle2onnx aborts its process if it lacks an operator. The default
# optimize_tool would install packages.
CONVERT = f"""
import sys
import paddle2onnx
program, parameters, target = sys.argv[1:]
paddle2onnx.export(program, parameters, target, opset_version={OPSET}, optimize_tool="None")
"""


class Onnx(Target):
    """The Open Neural Network Exchange format."""

    name, title = "onnx", "ONNX"
    parts = ("classifier", "encoder", "reconstruction")
    packages = ("onnxruntime",)
    install = "pip install onnxruntime"

    def missing_package(self) -> str:
        """Return a sentence with the remedy if paddle2onnx is not installed, else ""."""
        if importlib.util.find_spec("paddle2onnx") is not None:
            return ""
        hint = " under Python 3.12 or older, because there is no package for this version" * (
            sys.version_info >= (3, 13)
        )
        return f"--target onnx needs paddle2onnx, which is not installed: pip install 'plsc_mae[onnx]'{hint}"

    def write(self, content: Content, folder: Path) -> None:
        """Write the network as one .onnx file; for the errors see `Target.write`."""
        target = folder / f"{MODEL}.onnx"
        with tempfile.TemporaryDirectory() as traced:
            program = trace(content, Path(traced))
            words = [sys.executable, "-c", CONVERT, str(program), str(program.with_suffix(".pdiparams")), str(target)]
            done = subprocess.run(words, capture_output=True, text=True, env=inherited_environment(), check=False)
        if done.returncode or not target.exists():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise CheckpointError(
                f"paddle2onnx cannot convert the network (exit code {done.returncode}): {' '.join(lines[-2:])}; "
                "install the versions of 'plsc_mae[onnx]', or use --target inference"
            )

    def code(self, content: Content) -> Code:
        """Return the code that loads the network into ONNX Runtime on CPU and runs it."""
        names = [each.name for each in content.inputs]
        load = f"""\
onnxruntime.set_default_logger_severity(3)  # errors
return onnxruntime.InferenceSession(str(FOLDER / "{MODEL}.onnx"), providers=["CPUExecutionProvider"])"""
        run = f"""\
values = model.run(None, dict(zip({names}, [{", ".join(names)}])))
return dict(zip({list(content.outputs)}, values))"""
        return Code("import onnxruntime", load, run)


TARGET = Onnx()
