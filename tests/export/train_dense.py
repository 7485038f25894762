"""Builds the configurations of docs/dense at the size of a tiny exported backbone; runs where the libraries are.

Usage: train_dense.py LIBRARY CONFIG FOLDER, with LIBRARY paddleseg or paddledet and the FOLDER of an export. Prints the
losses of three training steps (PaddleSeg) or the shapes of the pyramid (PaddleDetection) as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import paddle
import yaml


def train_segmenter(config: str, backbone: dict, side: int) -> dict:
    """Train the configured model and optimizer for three steps on one random image."""
    from paddleseg.cvlibs import Config, SegBuilder

    content = yaml.safe_load(Path(config).read_text())
    content["model"]["backbone"] = backbone
    for name in ("warmup_iters", "warmup_start_lr"):  # three steps of the warm-up would change nothing
        del content["lr_scheduler"][name]
    small = Path(backbone["pretrained"]).parent / "small.yml"
    small.write_text(yaml.safe_dump(content))
    builder = SegBuilder(Config(str(small)))
    model, optimizer = builder.model, builder.optimizer
    weights = paddle.load(backbone["pretrained"])
    loaded = max(
        float((value - paddle.to_tensor(weights[name])).abs().max())
        for name, value in model.backbone.state_dict().items()
        if not name.endswith("relative_position_index")  # computed, so the file need not have it
    )
    image, label = paddle.randn([2, 3, side, side]), paddle.randint(0, 150, [2, side, side])
    losses = []
    for _ in range(3):
        (logits,) = model(image)
        # PaddleSeg 2.8's own CrossEntropyLoss multiplies a float by an int64 tensor, which Paddle 3.3 refuses.
        loss = paddle.nn.functional.cross_entropy(logits.transpose([0, 2, 3, 1]), label)
        loss.backward()
        optimizer.step()
        model.clear_gradients()
        losses.append(float(loss))
    return {"losses": losses, "loaded": loaded}


def build_detector(config: str, backbone: dict, side: int) -> dict:
    """Run the configured backbone and neck on a random image, and build the optimizer."""
    from ppdet.core.workspace import create, load_config

    settings = load_config(config)
    settings["VisionTransformer"].update(backbone)
    model = create(settings.architecture)
    weights = paddle.load(backbone["pretrained"])
    state = model.backbone.state_dict()
    loaded = max(
        float((state[name] - paddle.to_tensor(value)).abs().max())
        for name, value in weights.items()
        if not name.startswith("norm.")
    )
    model.eval()
    with paddle.no_grad():
        levels = model.neck(model.backbone({"image": paddle.randn([1, 3, side, side])}))
    create("OptimizerBuilder")(create("LearningRate")(10), model)
    return {"shapes": [level.shape for level in levels], "loaded": loaded}


def main(library: str, config: str, folder: str) -> None:
    """Run the check of a library and print its result as the last line."""
    paddle.seed(0)
    written = yaml.safe_load((Path(folder) / "backbone.yml").read_text())
    backbone = written["model"]["backbone"] if library == "paddleseg" else written["VisionTransformer"]
    backbone["pretrained"] = str(Path(folder) / backbone["pretrained"])
    side = backbone["img_size"] if isinstance(backbone["img_size"], int) else backbone["img_size"][0]
    check = train_segmenter if library == "paddleseg" else build_detector
    print(json.dumps(check(config, backbone, side)))


if __name__ == "__main__":
    main(*sys.argv[1:])
