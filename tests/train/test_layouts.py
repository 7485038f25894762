"""Whatever the layout of processes, a run follows the one of a single process: losses, norms, final weights."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.train.checkpoint import find_newest, load

STEPS = 10
# Sums over processes are rounded in another order; AdamW turns that into relative differences of single weights.
LOSSES, NORMS, WEIGHTS = 1e-5, 1e-4, 1e-5


def assert_follows(run, name, flags, processes, reference, *, weights=WEIGHTS):
    """Compare a run of several processes with records and checkpoint of one."""
    records = run.elsewhere(name, flags, processes)
    assert len(records) == STEPS
    for key, tolerance in (("loss", LOSSES), ("grad_norm", NORMS), ("lr", 0), ("min_lr", 0)):
        wanted = [record[key] for record in reference]
        assert [record[key] for record in records] == pytest.approx(wanted, rel=tolerance), key
    ours, theirs = (load(find_newest(str(run.folder / place), "")) for place in (name, "one"))
    assert set(ours.tensors) == set(theirs.tensors)
    for key, value in theirs.tensors.items():
        assert ours.tensors[key].shape == value.shape, key
        if not key.startswith("optimizer/"):
            np.testing.assert_allclose(ours.tensors[key], value, atol=weights, rtol=0, err_msg=key)
