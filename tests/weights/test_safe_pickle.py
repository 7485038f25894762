"""Hand-written pickles and torch files: hostile content has no effect or is rejected.

The few functions on top assemble pickle opcodes, so that a file can hold what its writer's library would not produce.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file
from plsc_mae.weights.safe_pickle import Budget, Foreign, Symbol, decode
from plsc_mae.weights.tensor_builders import BUILDERS

pytestmark = [pytest.mark.compat, pytest.mark.once]

AMPLE = Budget(1 << 30)
BIG = 1 << 22  # elements of a float32 tensor of 16 MiB


def plain(value) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True  # no memo, because its indices would collide between the pieces
    pickler.dump(value)
    return buffer.getvalue()[2:-1]  # without the protocol mark and the STOP


def symbol(path: str) -> bytes:
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(path: str, *args: bytes) -> bytes:
    return symbol(path) + b"(" + b"".join(args) + b"tR"


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(plain(key) + value for key, value in items.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def storage(kind: str = "FloatStorage", key="0", length: int = 6, *view: bytes) -> bytes:
    fields = plain("storage") + symbol(f"torch.{kind}") + plain(key) + plain("cpu") + plain(length)
    return b"(" + fields + b"".join(view) + b"tQ"


def tensor(source: bytes, shape=(6,), strides=(1,), offset=0) -> bytes:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", source, plain(offset), plain(shape), plain(strides), b"\x89", hooks)


@pytest.fixture
def torch_zip(tmp_path):
    """Write a torch zip file around a pickle and its storages."""

    def write(body: bytes, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED):
        path = tmp_path / "weights.pth"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", program(body))
            for name, data in records.items():
                archive.writestr(f"archive/{name}", data)
        return path

    return write


def torch_stream(body: bytes, storages: dict[str, np.ndarray], system: dict | None = None) -> bytes:
    """Write a file in torch's format before 1.6."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system or {"little_endian": True})]
    blocks = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    return b"".join([*head, program(body), pickle.dumps(list(storages), 2), *blocks])


SIX = np.arange(6, dtype=np.float32)


# Torch tensors


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2, 3), (3, 1), 0, SIX.reshape(2, 3)),
        ((3, 2), (1, 3), 0, SIX.reshape(2, 3).T),
        ((2,), (2,), 3, SIX[3::2]),
        ((4, 2), (0, 1), 4, np.tile(SIX[4:], (4, 1))),
        ((3, 3), (1, 1), 1, SIX[[[1, 2, 3], [2, 3, 4], [3, 4, 5]]]),
        ((), (), 5, SIX[5]),
        ((0, 7), (7, 1), 6, np.zeros((0, 7), np.float32)),
    ],
)
def test_views_of_a_storage(torch_zip, shape, strides, offset, expected):
    path = torch_zip(table(w=tensor(storage(), shape, strides, offset)), {"data/0": SIX.tobytes()})
    actual = read_file(path).tensors["w"]
    assert actual.shape == shape
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "trouble"),
    [
        ((7,), (1,), 0, "element 6 of a storage with 6"),
        ((2, 3), (4, 1), 0, "needs element 6"),
        ((1,), (1,), 6, "needs element 6"),
        ((1 << 40, 1 << 40), (1 << 40, 1), 0, "memory"),
        ((1 << 20, 1 << 20), (0, 0), 0, "memory"),
        ((2,), (-1,), 5, "non-negative integers"),
        ((-2,), (1,), 0, "non-negative integers"),
        ((2,), (1,), -1, "non-negative integers"),
        ((2,), (1, 1), 0, "strides"),
        ((1,) * 40, (1,) * 40, 0, "shape"),
        ("ab", (1, 1), 0, "shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(torch_zip, shape, strides, offset, trouble):
    path = torch_zip(table(w=tensor(storage(), shape, strides, offset)), {"data/0": SIX.tobytes()})
    with pytest.raises(CheckpointError, match=trouble):
        read_file(path)


def test_tied_bfloat16_and_bytes_that_are_no_booleans(torch_zip):
    half = tensor(storage("BFloat16Storage", "0", 2), (2,))
    flags = tensor(storage("BoolStorage", "1", 3), (3,))
    records = {"data/0": b"\x80\x3f\x20\xc0", "data/1": b"\x00\x01\x07"}  # 1 and -2.5
    tensors = read_file(torch_zip(table(a=half, b=half, flags=flags), records)).tensors
    for name in "ab":
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], [1, -2.5])
    np.testing.assert_array_equal(tensors["flags"].view(np.uint8), [0, 1, 1])


@pytest.mark.parametrize("mark", ["neg", "conj"])
def test_tensors_whose_storage_holds_other_values_are_refused(torch_zip, mark):
    plain_part = storage() + plain(0) + plain((6,)) + plain((1,)) + b"\x89" + plain({})
    for value, trouble in ((True, "negated or conjugated"), (False, None)):
        body = table(w=call("torch._utils._rebuild_tensor_v2", plain_part, plain({mark: value})))
        path = torch_zip(body, {"data/0": SIX.tobytes()})
        if trouble is None:
            np.testing.assert_array_equal(read_file(path).tensors["w"], SIX)
            continue
        with pytest.raises(CheckpointError, match=trouble):
            read_file(path)


def test_torchscript_is_refused(torch_zip):
    path = torch_zip(table(w=tensor(storage())), {"data/0": SIX.tobytes(), "code/__torch__.py": b""})
    with pytest.raises(CheckpointError, match=r"TorchScript program.*save its state dict"):
        read_file(path)


def test_untyped_storage_with_a_type_of_its_own(torch_zip):
    v3 = call(
        "torch._utils._rebuild_tensor_v3",
        storage("UntypedStorage", "0", 8),
        plain(1) + plain((3,)) + plain((1,)) + b"\x89" + plain({}),
        symbol("torch.uint16"),
    )
    path = torch_zip(table(w=v3), {"data/0": np.arange(4, dtype=np.uint16).tobytes()})
    np.testing.assert_array_equal(read_file(path).tensors["w"], np.array([1, 2, 3], np.uint16))


def test_types_without_a_numpy_equivalent_are_refused(torch_zip):
    path = torch_zip(table(w=tensor(storage("QInt8Storage"))), {"data/0": SIX.tobytes()})
    with pytest.raises(CheckpointError, match="QInt8Storage"):
        read_file(path)


def test_zip_without_checksums_and_compressed_zip(torch_zip):
    body = table(w=tensor(storage()))
    path = torch_zip(body, {"data/0": SIX.tobytes(), "byteorder": b"little"}, zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_file(path).tensors["w"], SIX)
    path = torch_zip(body, {"data/0": SIX.tobytes()})
    checksum = struct.pack("<L", zipfile.ZipFile(path).getinfo("archive/data/0").CRC)
    path.write_bytes(path.read_bytes().replace(checksum, bytes(4)))
    np.testing.assert_array_equal(read_file(path).tensors["w"], SIX)


def test_altered_bytes_are_noticed_by_their_checksum(torch_zip):
    path = torch_zip(table(w=tensor(storage())), {"data/0": SIX.tobytes()})
    path.write_bytes(path.read_bytes().replace(SIX.tobytes(), SIX[::-1].tobytes()))
    with pytest.raises(CheckpointError, match="CRC"):
        read_file(path)


def test_big_endian_torch_files_are_refused(torch_zip, saved):
    body = table(w=tensor(storage()))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_file(torch_zip(body, {"data/0": SIX.tobytes(), "byteorder": b"big"}))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_file(saved(torch_stream(body, {"0": SIX}, {"little_endian": False})))


def test_stream_with_a_storage_that_is_part_of_another(saved):
    part = storage("FloatStorage", "0", 6, plain(("part", 2, 3)))
    body = table(whole=tensor(storage()), part=tensor(part, (3,)))
    tensors = read_file(saved(torch_stream(body, {"0": SIX}))).tensors
    np.testing.assert_array_equal(tensors["part"], SIX[2:5])
    np.testing.assert_array_equal(tensors["whole"], SIX)
    outside = storage("FloatStorage", "0", 6, plain(("part", 4, 3)))
    with pytest.raises(CheckpointError, match="view of storage 0"):
        read_file(saved(torch_stream(table(w=tensor(outside, (3,))), {"0": SIX})))


def test_stream_whose_storages_do_not_match(saved):
    body = table(w=tensor(storage()))
    with pytest.raises(CheckpointError, match="storage 0 has 20 of 24 bytes"):
        read_file(saved(torch_stream(body, {"0": SIX[:5]})))
    with pytest.raises(CheckpointError, match="storage 0 has 0 of 24 bytes"):
        read_file(saved(torch_stream(body, {})))
    with pytest.raises(CheckpointError, match="belongs to no tensor"):
        read_file(saved(torch_stream(body, {"0": SIX, "1": SIX})))


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_large_torch_file_is_held_in_memory_once(torch_zip, saved, form):
    data = np.ones(BIG, np.float32)
    body = table(a=tensor(storage(length=BIG), (BIG,)), tied=tensor(storage(length=BIG), (BIG,)))
    path = torch_zip(body, {"data/0": data.tobytes()}) if form == "zip" else saved(torch_stream(body, {"0": data}))
    tracemalloc.start()
    tensors = read_file(path).tensors
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.shares_memory(tensors["a"], tensors["tied"])
    assert peak < 1.2 * data.nbytes


# Foreign objects


def test_globals_are_neither_imported_nor_called(saved):
    body = table(
        module=call("antigravity.fly", plain(1)),
        constant=symbol("this.d"),
        nested=symbol("os.system") + plain("true") + b"\x85R" + plain(()) + b"R",
    )
    assert read_file(saved(program(body))).meta == {
        "module": "antigravity.fly(1)",
        "constant": "this.d",
        "nested": "os.system()",
    }
    assert not {"antigravity", "this"} & set(sys.modules)


def test_foreign_containers_keep_their_items(saved):
    path = saved(
        program(
            table(
                mapping=call("addict.Dict") + plain("w") + plain(1) + b"s",
                sequence=call("mylib.List") + b"(" + plain(1) + plain(2) + b"e",
                counted=call("collections.Counter", plain({"a": 2})),
                object=symbol("mylib.Thing") + b")\x81" + plain({"secret": 1}) + b"b",
                space=symbol("argparse.Namespace") + b")\x81" + plain({"lr": 0.5}) + b"b",
            )
        )
    )
    assert read_file(path).meta == {
        "mapping": {"w": 1},
        "sequence": [1, 2],
        "counted": {"a": 2},
        "object": "mylib.Thing()",
        "space": {"lr": 0.5},
    }


def test_state_reaches_no_real_object():
    # pickle itself would set these attributes on the function that rebuilds tensors, and keep them for the process.
    state = plain((None, {"__defaults__": (1,), "__code__": None}))
    before = decode.__defaults__
    value = decode(io.BytesIO(program(symbol("plsc_mae.weights.safe_pickle.decode") + state + b"b")), {}, AMPLE)
    assert value == Symbol("plsc_mae.weights.safe_pickle.decode")
    assert decode.__defaults__ == before


def test_a_tensor_subclass_is_made_by_what_makes_tensors_only():
    # Any other builder would receive arguments that the budget was not charged for.
    function, args = symbol("builtins.list"), b"(" + plain([1, 2]) + b"t"
    body = call("torch._tensor._rebuild_from_type_v2", function, symbol("torch.Tensor"), args, plain({}))
    value = decode(io.BytesIO(program(body)), BUILDERS, AMPLE)
    assert isinstance(value, Foreign)


def test_a_pickle_of_too_many_steps_is_refused(monkeypatch, saved):
    monkeypatch.setattr("plsc_mae.weights.safe_pickle.MAX_STEPS", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 opcodes"):
        read_file(saved(program(b"]" * 2000)))


def test_tuples_as_keys_read_as_text(saved):
    assert read_file(saved(pickle.dumps({("a", 1): 2}))).meta == {"('a', 1)": 2}


def test_decode_leaves_the_stream_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1, "a"]) + pickle.dumps({2: (3.5, None)}) + b"rest")
    assert decode(stream, {}, AMPLE) == [1, "a"]
    assert decode(stream, {}, AMPLE) == {2: (3.5, None)}
    assert stream.read() == b"rest"


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_decodes(protocol):
    value = {
        "int": -(1 << 70),
        "small": [0, 255, 65535, -1],
        "float": 0.1,
        "text": "né\n",
        "flags": (True, False, None),
    }
    value |= {"nested": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}], 7: {"again": "text"}}
    assert decode(io.BytesIO(pickle.dumps(value, protocol)), {}, AMPLE) == value


@pytest.mark.parametrize("protocol", range(4, 6))
def test_bytes_and_sets_decode(protocol):
    value = {"b": b"xy", "a": bytearray(b"z"), "set": {1}, "frozen": frozenset([2])}
    assert decode(io.BytesIO(pickle.dumps(value, protocol)), {"builtins.bytearray": bytearray}, AMPLE) == {
        "b": b"xy",
        "a": bytearray(b"z"),
        "set": [1],
        "frozen": [2],
    }


def test_a_stand_in_names_its_arguments():
    foreign = decode(io.BytesIO(program(call("torch.device", plain("cuda"), plain(0), plain([])))), {}, AMPLE)
    assert isinstance(foreign, Foreign)
    assert foreign.describe() == "torch.device('cuda', 0, ...)"


# Structures without bound


def shared_levels(levels: int, first: bytes) -> bytes:
    """Nest lists, each with ten references to the previous one."""
    body = first + b"q\x00"
    for level in range(levels):
        body += b"0](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1])
    return body


ROUND_MODULE = symbol("torch.nn.Module") + b")\x81q\x00}(" + plain("_modules")
BOUNDLESS = {
    "list in itself": b"]q\x00h\x00a",
    "dict in itself": b"}q\x00" + plain("a") + b"h\x00s",
    "namespace in itself": symbol("argparse.Namespace") + b")\x81q\x00}" + plain("a") + b"h\x00sb",
    "module in itself": ROUND_MODULE + b"}" + plain("a") + b"h\x00sub",
    "module twice in itself": ROUND_MODULE + b"}(" + plain("a") + b"h\x00" + plain("b") + b"h\x00uub",
    "module with a long name, many times": table(_parameters=b"}" + plain("k" * 100_000) + plain(1) + b"s")
    + b"q\x05"
    + ROUND_MODULE
    + b"}("
    + b"".join(plain(i) + symbol("torch.nn.Module") + b")\x81h\x05b" for i in range(3000))
    + b"uub",
    "deep list": b"]" * 1000 + b"a" * 999,
    "deep tuple": b")" + b"\x85" * 1000,
    "billion values": shared_levels(9, plain(1)),
    "billion lists": shared_levels(9, b"]"),
    "bytes made again and again": plain("k" * 100_000)
    + b"q\x00"
    + symbol("_codecs.encode")
    + b"q\x01]("
    + b"h\x01h\x00\x85R" * 3000
    + b"e",
    "list copied again and again": b"]("
    + b"N" * 50_000
    + b"eq\x00]("
    + (symbol("builtins.list") + b"h\x00\x85R") * 3000
    + b"e",
    "bytearray, many times": b"\x96"
    + struct.pack("<Q", 100_000)
    + b"k" * 100_000
    + b"q\x00]("
    + b"h\x00" * 9000
    + b"e",
    "text, many times": plain("k" * 100_000) + b"q\x00](" + b"h\x00" * 9000 + b"e",
    "booleans made again and again": call("numpy.dtype", plain("b1"))
    + b"q\x00"
    + plain("k" * 100_000)
    + b"q\x01]("
    + (call("numpy.core.multiarray._reconstruct") + b"(K\x01" + plain((100_000,)) + b"h\x00\x89h\x01tb") * 1000
    + b"e",
    "long key, many times": b"}" + plain("k" * 100_000) + shared_levels(5, plain(1)) + b"s",
}


@pytest.mark.parametrize("name", BOUNDLESS)
def test_boundless_structures_are_refused(saved, name):
    with pytest.raises(CheckpointError, match=r"contains itself|far more memory"):
        read_file(saved(program(BOUNDLESS[name])))


def test_nested_tuples_are_no_keys(saved):
    # Python's hash of a deeply nested tuple overflows the C stack and kills the process.
    with pytest.raises(CheckpointError, match="tuple as a key"):
        read_file(saved(program(b"})" + b"\x85" * 200_000 + plain(1) + b"s")))


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        (b"", "empty stack"),
        (b"]r\xff\xff\xff\x7fh\x07", "memo entry 7"),  # pickle would reserve 2**31 memo entries here
        (b"e", "empty stack|never opened"),
        (b"t", "never opened"),
        (plain(1) + plain(2) + b"a", "appends to a int"),
        (b"]" + plain(1) + plain(2) + b"s", "sets items of a list"),
        (b"}(" + plain("a") + b"u", "key without a value"),
        (b"}]" + plain(1) + b"s", "list as a key"),
        (plain(1) + b")R", "not a function"),
        (symbol("a.b") + plain(1) + b"R", "not a function"),
        (b"\x82\x01", "EXT1"),
        (plain(("storage", 1)) + b"Q", "data outside"),
        (plain(1) + b"\x8e" + b"\xff" * 7 + b"\x7f", "too large|MemoryError"),
        (plain(1) + b"\x00", "unknown"),
        (b"c" + b"m" * 600 + b"\n" + b"n" * 600 + b"\n", "1200 characters"),
        (call("torch._utils._rebuild_tensor_v2"), "_rebuild_tensor_v2 with wrong arguments"),
        # Python hashes these alike, so that a dict of 50,000 takes half a minute.
        (b"}" + plain((1 << 61) - 1) + b"N" + b"s}" + plain(((1 << 61) - 1) << 4) + b"Ns", "65 bits as a key"),
        (table(number=plain(1 << 5000)), "integer of 5001 bits"),
    ],
)
def test_malformed_pickles_are_refused(saved, body, trouble):
    with pytest.raises(CheckpointError, match=trouble):
        read_file(saved(program(body)))
