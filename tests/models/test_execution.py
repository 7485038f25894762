"""Networks traced by `paddle.jit` compute what they compute eagerly; a traced variable has no place."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.execution import contiguous, is_eager, on_cpu, on_gpu
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.simmim import SimMIM
from plsc_mae.models.vit import VisionTransformer

pytestmark = pytest.mark.compat
SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
DECODER = {"decoder_embed_dim": 16, "decoder_num_heads": 2}


class Outputs(nn.Layer):
    """The tensors that a network returns, as `paddle.jit` wants them."""

    def __init__(self, network: nn.Layer, *arguments: int) -> None:
        super().__init__()
        self.network, self.arguments = network, arguments

    def forward(self, images, choice=None):
        """Return the outputs as a list."""
        network = self.network
        call = network.forward_features if isinstance(network, VisionTransformer) else network
        out = call(images, *self.arguments) if choice is None else call(images, choice, *self.arguments)
        return list(out) if isinstance(out, tuple) else [out]


NETWORKS = {
    "relative positions": lambda: Outputs(VisionTransformer(**SIZES, relative_positions="per block", k_bias=False)),
    "attentive probe": lambda: Outputs(ImageClassifier(3, probe="attentive", **SIZES)),
    "mae": lambda: Outputs(MaskedAutoencoder(decoder_depth=1, **SIZES, **DECODER)),
    "cae": lambda: Outputs(
        ContextAutoencoder(regressor_depth=1, num_decoder_self_attention=1, decoder_num_classes=5, **SIZES, **DECODER),
        2,
    ),
    "simmim": lambda: Outputs(SimMIM(**SIZES)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_networks_compute_the_same(name):
    paddle.seed(0)
    network = NETWORKS[name]()
    inputs = [paddle.randn([2, 3, 32, 32])]
    if name == "mae":
        inputs.append(paddle.rand([2, 4]))
    elif name in ("cae", "simmim"):
        inputs.append(paddle.to_tensor([[True, False, True, False], [False, False, True, True]]))
    network.eval()
    expected = [output.numpy() for output in network(*inputs)]
    traced = paddle.jit.to_static(network, full_graph=True)
    for output, value in zip(traced(*inputs), expected, strict=True):
        np.testing.assert_allclose(output.numpy(), value, atol=1e-6)


def test_a_traced_network_trains():
    """The gradients equal those of eager training, whose linear layers differ on CPU."""
    network = Outputs(VisionTransformer(**SIZES))
    images = paddle.randn([2, 3, 32, 32])
    gradients = []
    for run in (network, paddle.jit.to_static(network, full_graph=True)):
        network.clear_gradients()
        (run(images)[0] ** 2).mean().backward()
        gradients.append({name: parameter.grad.numpy() for name, parameter in network.named_parameters()})
    for name, eager in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], eager, atol=1e-6, err_msg=name)


class Record(nn.Layer):
    """Remembers the answers for its input."""

    def forward(self, x):
        """Return x + 1."""
        self.answers = [is_eager(x), on_cpu(x), on_gpu(x), contiguous(x) is x]
        return x + 1


def test_a_traced_variable_counts_as_on_the_current_device():
    record, x = Record(), paddle.ones([2, 2])
    on_devices = [not paddle.get_device().startswith("gpu"), paddle.get_device().startswith("gpu")]
    record(x)
    assert record.answers[:3] == [True, *on_devices]
    paddle.jit.to_static(record, full_graph=True)(x)
    assert record.answers == [False, *on_devices, True]
