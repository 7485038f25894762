"""Networks of published sizes."""

from __future__ import annotations

import paddle
import pytest

import plsc_mae


@pytest.fixture
def create_declared():
    """Return `create_model` for networks whose parameters are counted or loaded; filling them would take seconds."""

    def create(name: str, **arguments):
        with paddle.LazyGuard():
            return plsc_mae.create_model(name, **arguments)

    return create
