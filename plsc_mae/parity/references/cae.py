"""Program that runs Atten4Vis/CAE: models/modeling_cae.py of a checkout, with timm."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace

import torch.nn.functional as F

from plsc_mae.parity.references import shims
from plsc_mae.parity.references.exchange import Message
from plsc_mae.parity.references.measure import Network, Outputs, batch_tensors, blocks, load_strictly, main


def build(message: Message, checkout: str) -> Network:
    """Build the requested network with the original's function of that name."""
    shims.install()
    shims.stand_in()
    sys.path.insert(0, checkout)
    modeling_cae, timm = importlib.import_module("models.modeling_cae"), importlib.import_module("timm")

    settings = message.settings
    args = Namespace(**settings["args"])
    model = getattr(modeling_cae, settings["name"])(drop_path_rate=0.0, init_values=settings["init_values"], args=args)
    load_strictly(model, message.groups["weights"], {})
    images, mask, labels = batch_tensors(message)

    def run() -> Outputs:
        logits, latent, target = model(images, mask)
        main_loss = F.cross_entropy(logits, labels)
        align_loss = settings["align_loss_weight"] * F.mse_loss(latent, target.detach())
        outputs = {"logits": logits, "latent": latent, "alignment.target": target, "loss_main": main_loss}
        return {**outputs, "loss_align": align_loss, "loss": main_loss + align_loss}

    outputs_of = {**blocks("encoder", model.encoder.blocks), "encoder.norm": model.encoder.norm}
    outputs_of |= blocks("alignment", model.alignment_encoder.blocks)
    outputs_of |= blocks("regressor", model.regresser.regressor_blocks)
    outputs_of |= blocks("decoder", model.decoder.decoder_blocks)
    inputs_of = {"encoder.embed": model.encoder.blocks[0], "alignment.embed": model.alignment_encoder.blocks[0]}
    inputs_of["decoder.embed"] = model.decoder.decoder_blocks[0]
    return Network(model, run, inputs_of, outputs_of, {}, {"timm": str(getattr(timm, "__version__", "?"))})


if __name__ == "__main__":
    main(build)
