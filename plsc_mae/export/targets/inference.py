"""Paddle Inference: a traced program and its parameters, for any batch size."""

from __future__ import annotations

from pathlib import Path

import paddle
from paddle.static import InputSpec

from plsc_mae.export.content import Content
from plsc_mae.export.targets.base import MODEL, Code, Target

PROGRAMS = (".json", ".pdmodel")  # suffix of the program, in Paddle 3 and in Paddle 2


class Inference(Target):
    """Paddle Inference."""

    name, title = "inference", "Paddle Inference"
    parts = ("classifier", "encoder", "reconstruction")
    packages = ("paddle",)
    install = "pip install paddlepaddle"
    in_process = True

    def write(self, content: Content, folder: Path) -> None:
        """Write the program and its parameters; for the errors see `Target.write`."""
        trace(content, folder)

    def code(self, content: Content) -> Code:
        """Return the code that loads a predictor on CPU and runs it."""
        names = [each.name for each in content.inputs]
        load = f'''\
program = next(FOLDER / f"{MODEL}{{suffix}}" for suffix in {PROGRAMS} if (FOLDER / f"{MODEL}{{suffix}}").exists())
config = Config(str(program), str(FOLDER / "{MODEL}.pdiparams"))
config.disable_glog_info()
return create_predictor(config)'''
        run = f"""\
for name, value in zip({names}, [{", ".join(names)}]):
    model.get_input_handle(name).copy_from_cpu(value)
model.run()
values = [model.get_output_handle(name).copy_to_cpu() for name in model.get_output_names()]
return dict(zip({list(content.outputs)}, values))"""
        return Code("from paddle.inference import Config, create_predictor", load, run)


def trace(content: Content, folder: Path) -> Path:
    """Write the traced network with a dynamic batch axis; return the file of the program."""
    specs = [InputSpec([None, *each.shape], each.dtype, each.name) for each in content.inputs]
    paddle.jit.save(content.layer, str(folder / MODEL), input_spec=specs)
    (folder / f"{MODEL}.pdiparams.info").unlink(missing_ok=True)  # Paddle 2 writes it; only training reads it
    return next(folder / f"{MODEL}{suffix}" for suffix in PROGRAMS if (folder / f"{MODEL}{suffix}").exists())


TARGET = Inference()
