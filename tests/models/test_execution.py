"""Networks traced by `paddle.jit` compute what they compute eagerly; a traced variable has no place."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.models.execution import contiguous, is_eager, on_cpu, on_gpu
from plsc_mae.models.vit import VisionTransformer

pytestmark = pytest.mark.compat


class Features(nn.Layer):
    """Tokens of a tiny encoder."""

    def __init__(self):
        super().__init__()
        self.network = VisionTransformer(32, 16, embed_dim=16, depth=1, num_heads=2, relative_positions="per block")

    def forward(self, images):
        """Return the tokens."""
        return self.network.forward_features(images)


def test_a_traced_network_trains():
    """Outputs and gradients equal those of eager training, whose linear layers differ on CPU.

    The tests of `export` trace every network in evaluation mode.
    """
    network, images = Features(), paddle.randn([2, 3, 32, 32])
    outputs, gradients = [], []
    for run in (network, paddle.jit.to_static(network, full_graph=True)):
        network.clear_gradients()
        tokens = run(images)
        (tokens**2 * tokens).sum().backward()
        outputs.append(tokens.numpy())
        gradients.append({name: parameter.grad.numpy() for name, parameter in network.named_parameters()})
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-6)
    for name, eager in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], eager, atol=1e-4, rtol=1e-4, err_msg=name)


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
