"""The reader of weight files: valid files are read exactly, all others are rejected in one sentence.

Values are compared bit for bit: reading does no arithmetic. Structures that no writer makes are in test_pickles.py.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file

pytestmark = pytest.mark.compat

TORCH_FILES = [
    "fb_training.pth",
    "fb_released_encoder.pth",
    "fb_released_full.pth",
    "fb_finetuned_gap.pth",
    "module_prefix.pth",
    "dtypes.pth",
    "dtypes_legacy_nonzip.pth",
    "views.pth",
    "views_legacy_nonzip.pth",
    "priv_pretrain_cls.pth",
    "priv_pretrain_gap.pth",
    "priv_finetune_ema.pth",
    "mp_pretrain.pth",
    "hf_vitmae_pytorch_model.bin",
]


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def leaf(meta, path: str):
    """Follow a "/" path of the golden notes through dicts with text or number keys and lists."""
    for key in path.split("/"):
        meta = meta[key] if isinstance(meta, dict) and key in meta else meta[int(key)]
    return meta


def plain_leaves(case) -> dict:
    return {
        path: value
        for path, value in case.meta["leaves"].items()
        if not (isinstance(value, dict) and "tensor" in value)
    }


@pytest.mark.parametrize("name", TORCH_FILES)
def test_every_torch_dialect_reads_exactly(golden, checkpoints, name):
    case = golden(f"mae/checkpoints/{name.rpartition('.')[0]}")
    checkpoint = read_file(checkpoints / name)
    assert_same(checkpoint.tensors, {k: v for k, v in case.group("tensor").items() if not k.startswith("bits/")})
    for path, value in plain_leaves(case).items():
        assert leaf(checkpoint.meta, path) == value, path


@pytest.mark.parametrize("name", ["fb_training_intstep", "fb_training_legacy_nonzip"])
def test_training_checkpoints_of_older_torch(golden, checkpoints, name):
    expected = golden("mae/checkpoints/fb_training").group("tensor")
    checkpoint = read_file(checkpoints / f"{name}.pth")
    assert_same(checkpoint.tensors, {path: array for path, array in expected.items() if not path.endswith("/step")})
    for path, value in plain_leaves(golden(f"mae/checkpoints/{name}")).items():
        assert leaf(checkpoint.meta, path) == value, path


def test_network_part_of_a_training_checkpoint(checkpoints):
    checkpoint = read_file(checkpoints / "fb_training.pth")
    assert checkpoint.path == checkpoints / "fb_training.pth"
    assert checkpoint.dialect == ""
    assert len(checkpoint.model) == 50
    assert checkpoint.model["cls_token"] is checkpoint.tensors["model/cls_token"]
    assert checkpoint.meta["args"]["model"] == "mae_vit_large_patch16"
    assert "model" not in checkpoint.meta
    assert not checkpoint.model["cls_token"].flags.writeable


def test_common_module_prefix_is_stripped(checkpoints):
    checkpoint = read_file(checkpoints / "module_prefix.pth")
    assert "module/module.cls_token" in checkpoint.tensors
    assert "cls_token" in checkpoint.model
    assert not any(name.startswith("module.") for name in checkpoint.model)


def test_safetensors_with_every_type(golden, checkpoints):
    checkpoint = read_file(checkpoints / "fb_full.safetensors")
    expected = golden("mae/checkpoints/fb_full_safetensors").group("tensor")
    assert_same(checkpoint.tensors, {name: array for name, array in expected.items() if not name.startswith("bits/")})
    assert checkpoint.model.keys() == checkpoint.tensors.keys()
    assert checkpoint.meta == {"format": "pt", "note": "golden"}


def test_hub_weights_agree_between_formats(checkpoints):
    stored = read_file(checkpoints / "hf_vitmae_pytorch_model.bin")
    assert_same(read_file(checkpoints / "hf_vitmae_model.safetensors").model, stored.model)
    renamed = read_file(checkpoints / "hf_vitmae_v5names.safetensors").model
    assert sorted(array.tobytes() for array in renamed.values()) == sorted(a.tobytes() for a in stored.model.values())


@pytest.mark.parametrize(("part", "count"), [("encoder", 74), ("decoder", 76)])
@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_whole_pickled_module_reads_as_its_state_dict(root, form, part, count):
    folder = root / "tests" / "golden" / "cae" / "checkpoints"
    module = read_file(folder / f"dalle_module_{form}_{part}.pkl")
    assert len(module.model) == count
    assert_same(module.model, read_file(folder / f"dalle_statedict_{part}.pth").model)
    assert_same(module.tensors, module.model)


@pytest.mark.parametrize(
    ("name", "where", "described"),
    [
        ("malicious_exec_zip.pth", "model/evil", "builtins.exec("),
        ("malicious_in_namespace.pth", "args/hook", "posix.system("),
        ("malicious_system_legacy_nonzip.pth", "args", "posix.system("),
        ("malicious_plain_pickle.pth", "x", "builtins.exec("),
    ],
)
def test_malicious_files_read_without_effect(checkpoints, tmp_path, monkeypatch, name, where, described):
    marker = tmp_path / "marker"
    monkeypatch.setenv("PWNED", str(marker))
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("a command was run"))
    checkpoint = read_file(checkpoints / name)
    assert not marker.exists()
    assert leaf(checkpoint.meta, where).startswith(described)
    assert set(checkpoint.model) <= {"w"}


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("bad_empty.pth", "is empty"),
        ("bad_html.pth", "web page"),
        ("bad_missing_storage.pth", "storage 0 is missing"),
        ("bad_short_storage.pth", "storage 0 has 4 of 12 bytes"),
        ("bad_size_out_of_storage.pth", "element 199 of a storage with 3"),
        ("bad_header_length.safetensors", "header, 1152921504606846976 bytes"),
        ("truncated.safetensors", "bytes early"),
        ("truncated_zip.pth", "not a zip file"),
        ("truncated_legacy_nonzip.pth", "ends before storage"),
        ("hf_vitmae_config.json", "not a weight file"),
        ("absent.pth", "No such file"),
        ("", "is a folder"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(checkpoints, name, trouble):
    with pytest.raises(CheckpointError, match=trouble) as caught:
        read_file(checkpoints / name)
    assert str(checkpoints / name) in str(caught.value)
    assert "\n" not in str(caught.value)


# Paddle


def paddle_layers():
    net = paddle.nn.Sequential(paddle.nn.Linear(3, 4), paddle.nn.LayerNorm(4))
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=net.parameters())
    net(paddle.ones([2, 3])).sum().backward()
    optimizer.step()
    return net, optimizer


def as_numpy(state) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in state.items() if isinstance(value, paddle.Tensor)}


@pytest.mark.parametrize("protocol", [2, 4])
def test_paddle_state_dicts(tmp_path, protocol):
    net, optimizer = paddle_layers()
    paddle.save(net.state_dict(), str(tmp_path / "net.pdparams"), protocol=protocol)
    paddle.save(optimizer.state_dict(), str(tmp_path / "net.pdopt"), protocol=protocol)
    checkpoint = read_file(tmp_path / "net.pdparams")
    assert_same(checkpoint.model, as_numpy(net.state_dict()))
    assert_same(checkpoint.tensors, checkpoint.model)
    assert_same(read_file(tmp_path / "net.pdopt").tensors, as_numpy(optimizer.state_dict()))


@pytest.mark.parametrize("protocol", [2, 4])
def test_paddle_training_checkpoint(tmp_path, protocol):
    net, optimizer = paddle_layers()
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": np.float64(0.5)}
    content["mixed"] = [paddle.full([2], 7.0), "text", {1, 2}, (paddle.get_rng_state()[0], 1)]
    paddle.save(content, str(tmp_path / "checkpoint-3.pd"), protocol=protocol)
    checkpoint = read_file(tmp_path / "checkpoint-3.pd")
    assert_same(checkpoint.model, as_numpy(net.state_dict()))
    for name, array in as_numpy(optimizer.state_dict()).items():
        np.testing.assert_array_equal(checkpoint.tensors[f"optimizer/{name}"], array)
    np.testing.assert_array_equal(checkpoint.tensors["mixed/0"], [7, 7])
    assert checkpoint.meta["epoch"] == 3
    assert checkpoint.meta["lr"] == 0.5
    assert checkpoint.meta["mixed"][:3] == [None, "text", [1, 2]]
    assert "GeneratorState" in checkpoint.meta["mixed"][3][0]


def test_paddle_bfloat16_is_widened(tmp_path):
    values = paddle.to_tensor([1.0, -2.5, 3.140625])
    tensors = {"w": values.astype("bfloat16"), "index": paddle.to_tensor([1, 2])}
    paddle.save(tensors, str(tmp_path / "flat.pdparams"))
    paddle.save({"model": tensors}, str(tmp_path / "nested.pd"))
    expected = {"w": values.numpy(), "index": np.array([1, 2])}
    assert_same(read_file(tmp_path / "flat.pdparams").model, expected)
    assert_same(read_file(tmp_path / "nested.pd").model, expected)


def test_paddle_single_tensor_and_dense_tensor(tmp_path, saved):
    paddle.save(paddle.ones([2, 3]), str(tmp_path / "one.pd"))
    assert_same(read_file(tmp_path / "one.pd").tensors, {"data": np.ones((2, 3), np.float32)})
    # The form in which paddle.save pickles a DenseTensor; no other eval is accepted.
    dense = pickle.dumps({"w": Reduced(eval, ("data", {"data": np.arange(3)})), "x": Reduced(eval, ("1 + 1",))})
    checkpoint = read_file(saved(dense))
    assert_same(checkpoint.tensors, {"w": np.arange(3)})
    assert checkpoint.meta == {"x": "builtins.eval('1 + 1')"}


def test_paddle_arrays_cut_in_pieces(saved):
    whole = np.arange(12.0).reshape(3, 4)
    plan = {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}}
    pieces = {"w@@.0": whole.ravel()[:7], "w@@.1": whole.ravel()[7:]}
    table = {**pieces, "b": np.ones(2), "UnpackBigParamInfor@@": plan, "StructuredToParameterName@@": {"w": "linear_0"}}
    assert_same(read_file(saved(pickle.dumps(table, 2))).model, {"w": whole, "b": np.ones(2)})
    del table["w@@.1"]
    with pytest.raises(CheckpointError, match="pieces of w are missing"):
        read_file(saved(pickle.dumps(table, 2)))


class Reduced:
    """Object that is pickled as a call."""

    def __init__(self, function, args) -> None:
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


# NumPy


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("spelling", ["numpy.core", "numpy._core"])
def test_plain_pickles_of_arrays_with_a_footer(saved, protocol, spelling):
    tensors = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.float16([1.5, -0.0]),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3, np.int16),
        "flags": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "stepped": np.arange(10)[::3],
    }
    content = {
        "model": tensors,
        "rng": np.arange(4, dtype=np.uint16),
        "step": np.int64(5),
        "names": np.array(["a", "bc"]),
    }
    data = pickle.dumps(content, protocol)
    if protocol < 4:  # module names are lines of text, so they can be replaced by another NumPy's
        data = data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cnumpy.core.", b"c" + spelling.encode() + b".")
    checkpoint = read_file(saved(data + b"checksum 0123456789abcdef"))
    assert_same(checkpoint.model, tensors)
    assert_same({"rng": checkpoint.tensors["rng"]}, {"rng": content["rng"]})
    assert checkpoint.meta == {"step": 5, "names": ["a", "bc"]}


def test_bytes_that_python_2_wrote_as_text(saved):
    modern = pickle.dumps({"w": np.array([1.0, -2.0])}, 3)
    raw = np.array([1.0, -2.0]).tobytes()
    old = modern.replace(b"C\x10" + raw, b"U\x10" + raw).replace(b"\x80\x03", b"\x80\x02").replace(b"C\x01b", b"U\x01b")
    assert old != modern
    assert_same(read_file(saved(old)).tensors, {"w": np.array([1.0, -2.0])})


@pytest.mark.parametrize("save", [lambda f, a: np.savez(f, w=a), lambda f, a: pickle.dump({"w": a}, f)])
def test_big_endian_arrays_are_refused(saved, save):
    file = io.BytesIO()
    save(file, np.arange(3, dtype=">f4"))
    with pytest.raises(CheckpointError, match=r"big-endian|>f4"):
        read_file(saved(file.getvalue()))


def test_duplicate_tensor_names_are_refused(saved):
    with pytest.raises(CheckpointError, match=r"two of its tensors .*a/b"):
        read_file(saved(pickle.dumps({"a/b": np.ones(1), "a": {"b": np.ones(1)}})))


# Safetensors


def entry(start: int = 0, end: int = 4, shape=(1,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "trouble"),
    [
        ('{"a": %s, "a": %s}' % ((json.dumps(entry()),) * 2), "two entries with the same name"),
        ({"a": [1]}, "lacks the type, shape or offsets of tensor a"),
        ({"a": {"shape": [1], "data_offsets": [0, 4]}}, "of tensor a"),
        ({"a": entry(), "b": entry()}, "bytes 0 to 4 of tensor b"),
        ({"a": entry(2, 6)}, "bytes 2 to 6 of tensor a"),
        ({"a": entry(0, 4, (1 << 62, 1 << 62))}, "bytes 0 to 4 of tensor a"),
        ({"a": entry(0, -4, (-1,))}, "non-negative integers"),
        ({"a": entry(0, 400, (100,))}, "ends 392 bytes early"),
        ({"a": entry()}, "4 bytes at its end"),
        ({"a": entry(0, 8, (8,), "F8_E4M3")}, "type F8_E4M3"),
        ('{"a": 1}x', "Extra data"),
        ('{\0"\0a\0"\0:\0[\0]\0}\0', "property name"),  # UTF-16, for which Python's decoder would import a codec
        ("{" + '"a": {' * 5000, "cannot be read as a safetensors file"),
    ],
)
def test_malformed_safetensors_are_refused(saved, header, trouble):
    text = header if isinstance(header, str) else json.dumps(header)
    with pytest.raises(CheckpointError, match=trouble):
        read_file(saved(struct.pack("<Q", len(text)) + text.encode() + bytes(8)))


# Files


def test_what_is_no_file_is_refused(tmp_path, saved):
    os.mkfifo(tmp_path / "pipe")  # opening it would block forever
    with pytest.raises(CheckpointError, match="device or pipe"):
        read_file(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="device or pipe"):
        read_file("/dev/zero")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_file("a\0b")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_file("a" * 5000)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer .*git lfs pull"):
        read_file(saved(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"))
    with pytest.raises(CheckpointError, match="web page"):
        read_file(saved(b"\xef\xbb\xbf\r\n<!DOCTYPE html>"))


def test_words_of_a_file_in_a_message_are_short_and_printable(saved):
    bad = {"\x1b[31m\n" + "k" * 5000: {"OriginShape": (3,), "slices": ["lost"]}}
    table = pickle.dumps({"UnpackBigParamInfor@@": bad})
    with pytest.raises(CheckpointError, match=r"pieces of \?\[31m kkk") as caught:
        read_file(saved(table))
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["views.pth", "views_legacy_nonzip.pth", "fb_full.safetensors", "a.npz"])
def test_files_are_mapped_and_closed_with_their_arrays(checkpoints, tmp_path, name):
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    path = next(path for path in (checkpoints / name, tmp_path / name) if path.exists())

    def is_open() -> bool:
        links = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
        return any(os.path.realpath(link) == str(path) for link in links if os.path.lexists(link))

    tensors = read_file(path).tensors
    assert str(path) in Path("/proc/self/maps").read_text()
    del tensors
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert not is_open()


# Memory


@pytest.mark.parametrize("file", ["flat.pdparams", "nested.pd"])
def test_a_large_pickle_is_held_in_memory_once(tmp_path, file):
    arrays = {f"w{i}": np.full((1 << 20,), float(i), np.float32) for i in range(8)}  # 32 MiB
    tensors = {name: paddle.to_tensor(array) for name, array in arrays.items()}
    paddle.save(tensors if file == "flat.pdparams" else {"model": tensors}, str(tmp_path / file))
    tracemalloc.start()
    checkpoint = read_file(tmp_path / file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_same(checkpoint.model, arrays)
    assert peak < 1.2 * (32 << 20)  # the tensors, one piece of the file, and the structure
