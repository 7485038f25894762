"""Program that runs ViTMAEForPreTraining of Hugging Face transformers."""

from __future__ import annotations

import os
import re

from plsc_mae.parity.references.exchange import Message
from plsc_mae.parity.references.measure import Network, Outputs, batch_tensors, blocks, load_strictly, main

# Names in files of the Hub -> names of the modules in transformers 5.
MODULES = (
    (r"^vit\.encoder\.layer\.", "vit.layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def build(message: Message, _checkout: str) -> Network:
    """Build the network with the requested sizes from a config object; nothing is downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    config = transformers.ViTMAEConfig(**message.settings["config"])
    model = transformers.ViTMAEForPreTraining(config)
    known = set(model.state_dict())
    names = {name: name if name in known else module_name(name) for name in message.groups["weights"]}
    load_strictly(model, message.groups["weights"], names)
    images, noise = batch_tensors(message)

    def run() -> Outputs:
        out = model(pixel_values=images, noise=noise)
        return {"pred": out.logits, "mask": out.mask, "loss": out.loss}

    encoder = model.vit.layers if hasattr(model.vit, "layers") else model.vit.encoder.layer
    decoder = model.decoder.decoder_layers
    outputs_of = {**blocks("encoder", encoder), "latent": model.vit.layernorm, **blocks("decoder", decoder)}
    inputs_of = {"encoder.embed": encoder[0], "decoder.embed": decoder[0]}
    return Network(model, run, inputs_of, outputs_of, names, {"transformers": transformers.__version__})


def module_name(name: str) -> str:
    """Translate the name of a tensor in files of the Hub into its name in the modules of transformers 5."""
    for pattern, replacement in MODULES:
        name = re.sub(pattern, replacement, name)
    return name


if __name__ == "__main__":
    main(build)
