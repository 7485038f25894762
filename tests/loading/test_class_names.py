"""Class names that a user gives in place of the stored ones."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.loading.class_names import read_head
from plsc_mae.weights import Checkpoint


@pytest.mark.parametrize(
    ("stored", "given", "mentioned"),
    [
        (("cat", "dog"), ("cat", "dog"), None),
        ((), ("cat", "dog"), None),
        (("0", "1"), ("cat", "dog"), None),  # of a list file, which has no names
        (
            ("cat", "dog"),
            ("dog", "cat"),
            ("different order", "0 is 'dog' instead of 'cat'", "the stored order"),
        ),
        (
            ("cat", "dog"),
            ("cat", "wolf"),
            ("other names", "1 is 'wolf' instead of 'dog'", "the stored names"),
        ),
    ],
)
def test_replaced_names_are_shown(tmp_path, caplog, stored, given, mentioned):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(given))
    meta = {"classes": list(stored)} if stored else {}
    tensors = {"head.bias": np.zeros(2, np.float32)}
    checkpoint = Checkpoint(Path("some.pd"), tensors, tensors, meta)
    with caplog.at_level(logging.WARNING, "plsc_mae"):
        assert read_head(checkpoint, str(file)).names == given
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == (mentioned is not None)
    assert all(part in text for text in texts for part in (*mentioned, "--classes", "some.pd"))
