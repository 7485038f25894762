"""The random tokenizer: written once, read as the published one is, and said to mean nothing."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.cli import main
from plsc_mae.models.dalle import DalleEncoder, random_init
from plsc_mae.weights.dalle import infer_sizes, read_dalle

pytestmark = pytest.mark.compat

SMALL = "--n_hid 8 --vocab_size 16"


def test_it_is_written_in_the_published_form(tmp_path, capsys):
    folder = tmp_path / "new" / "tokenizer"
    assert main(f"random-tokenizer {folder} {SMALL} --seed 3".split()) == 0
    told = capsys.readouterr().out
    assert "RANDOM TOKENIZER, seed 3: " in told
    sizes = {"n_hid": 8, "vocab_size": 16, "blocks_per_group": 2}
    expected = DalleEncoder(**sizes)
    random_init(expected, 3)
    tensors = read_dalle(folder, "encoder")
    assert infer_sizes(tensors) == {**sizes, "in_chans": 3}
    for name, value in expected.state_dict().items():
        np.testing.assert_array_equal(tensors[name], value.numpy())
    assert infer_sizes(read_dalle(folder, "decoder")) == {**sizes, "n_init": 4, "out_chans": 3}
    # What PLSC does with such a file.
    other = DalleEncoder(n_hid=8, vocab_size=16)
    other.set_state_dict(paddle.load(str(folder / "encoder_weight.pd")))
    np.testing.assert_array_equal(other.blocks["input"].w.numpy(), tensors["blocks.input.w"])


def test_nothing_is_overwritten(tmp_path, capsys):
    assert main(f"random-tokenizer {tmp_path} {SMALL}".split()) == 0
    (tmp_path / "encoder_weight.pd").unlink()
    before = (tmp_path / "decoder_weight.pd").read_bytes()
    assert main(f"random-tokenizer {tmp_path} {SMALL} --seed 1".split()) == 2
    assert f"{tmp_path}/decoder_weight.pd exists and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "decoder_weight.pd").read_bytes() == before
    assert not (tmp_path / "encoder_weight.pd").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the folder to write to: plsc-mae random-tokenizer DIR"),
        (["FILE/below", *SMALL.split()], "cannot write FILE/below/encoder_weight.pd"),
        (["new", "--n_hid", "10"], "--n_hid must be a multiple of 4, got 10"),
        (["new", "--vocab_size", "1"], "--vocab_size must lie in [2, inf), got 1"),
    ],
)
def test_mistakes_are_sentences(tmp_path, capsys, words, told):
    file = tmp_path / "notes.txt"
    file.touch()
    assert main(["random-tokenizer", *(word.replace("FILE", str(file)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("plsc-mae: error: ")
    assert told.replace("FILE", str(file)) in err
    assert err.count("\n") == 1
