"""Fuzz the weight reader: every file is read or rejected in bounded time and memory, without side effects.

    python tests/weights/fuzz_reader.py --inputs 20000 --seed 0
    python tests/weights/fuzz_reader.py --guided --inputs 20000    guided by coverage, needs `pip install atheris`

An input is a file of tests/golden, or a small one of a format that has none there, changed at random: its bytes, the
opcodes of its pickles, the header of its safetensors, the directory of its zip; archives are packed again with right
checksums. Inputs that show a fault are kept in --findings and end the run with exit code 1.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file

GOLDEN = Path(__file__).parents[1] / "golden"
SEEDS = (
    "dtypes.pth",
    "dtypes_legacy_nonzip.pth",
    "views.pth",
    "views_legacy_nonzip.pth",
    "module_prefix.pth",
    "fb_released_encoder.pth",
    "malicious_exec_zip.pth",
    "malicious_in_namespace.pth",
    "malicious_plain_pickle.pth",
    "malicious_system_legacy_nonzip.pth",
    "hf_vitmae_model.safetensors",
    "fb_full.safetensors",
    "views.npz",
)
MAX_SECONDS, MAX_BYTES = 1.0, 200 << 20  # limits for one input; all inputs are small
# What no weight file may bring about: see "Audit events" in Python's documentation.
FORBIDDEN = ("exec", "import", "os.", "pickle.", "shutil.", "socket.", "subprocess.", "ctypes.", "pty.", "webbrowser.")
HARMLESS = ("os.listdir", "os.scandir")
NUMBERS = (0, 1, 2, 3, 7, 63, 255, 4096, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -(1 << 31))
GLOBALS = (
    *("os system", "posix system", "builtins exec", "builtins eval", "builtins getattr", "subprocess Popen"),
    *("builtins list", "builtins tuple", "builtins set", "builtins bytearray", "_codecs encode"),
    *("collections OrderedDict", "collections defaultdict", "argparse Namespace", "torch Size", "torch FloatStorage"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"),
    *("torch._tensor _rebuild_from_type_v2", "torch BFloat16Storage", "torch BoolStorage", "torch UntypedStorage"),
    *("numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar"),
    *("numpy._core.numeric _frombuffer", "oneflow Tensor", "oneflow.nn Parameter"),
)
Mutator = Callable[[bytes, random.Random], bytes]


class Watch:
    """Recorder of the side effects of a reading on the process."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[object, ...]) -> None:
        if not self.armed or event in HARMLESS:
            return
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event.startswith(FORBIDDEN):
            self.events.append(f"{event} {str(args)[:200]}")


def fault_of(path: Path, watch: Watch) -> tuple[str, str]:
    """Read a file; return the outcome ("read" or "refused") and a description of a fault, if any."""
    start, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, fault = "read", ""
    watch.events, watch.armed = [], True
    try:
        checkpoint = read_file(path)
        for array in checkpoint.tensors.values():
            array.any()
    except CheckpointError as error:
        outcome = "refused"
        if "\n" in str(error) or len(str(error)) > 600:
            fault = f"not one short sentence: {str(error)[:700]!r}"
    except Exception:
        fault = traceback.format_exc()
    watch.armed = False
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    if watch.events:
        fault = f"effects: {watch.events}"
    if seconds > MAX_SECONDS:
        fault = f"{seconds:.1f} seconds"
    if grown > MAX_BYTES:
        fault = f"{grown >> 20} MiB"
    return outcome, fault


def warm_up(path: Path, watch: Watch) -> None:
    """Read every seed unchanged, so that lazy imports of Python and NumPy are done."""
    for data in seeds().values():
        path.write_bytes(data)
        fault_of(path, watch)


# Seeds


def seeds() -> dict[str, bytes]:
    """Return the seed files by name: small files of every format."""
    rng = np.random.default_rng(0)
    weights = {f"blocks.{index}.weight": rng.standard_normal((3, 2), np.float32) for index in range(3)}
    tables = {"model": weights, "epoch": 3, "half": np.float16([1, 2]), "flags": np.array([True, False])}
    tables |= {"fortran": np.asfortranarray(np.eye(3)), "step": np.int64(5), "names": np.array(["a", "bc"]), 7: {1, 2}}
    pieces = {
        "w@@.0": np.arange(7.0),
        "w@@.1": np.arange(5.0),
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}},
        "StructuredToParameterName@@": {"w": "linear_0.w_0", "b": "linear_0.b_0"},
        "b": np.array([16256], np.uint16),
    }
    # An object with these keys in its state is read as a torch module.
    child = SimpleNamespace(_parameters={"w": np.ones(2)}, _buffers={"b": np.ones(1)}, _modules={})
    child._non_persistent_buffers_set = {"b"}
    module = SimpleNamespace(_parameters={"bias": None}, _buffers={}, _modules={"0": child, "1": None})
    named = {"model": {name: ("linear_0", array) for name, array in weights.items()}, "epoch": 1}
    found = {f"pickle protocol {protocol}": pickle.dumps(tables, protocol) for protocol in (2, 3, 4, 5)}
    found |= {"paddle flat": pickle.dumps(pieces, 2), "paddle nested": pickle.dumps(named, 4)}
    found["module"] = pickle.dumps(module, 2)
    for name, save in (("npz", np.savez), ("npz compressed", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, **weights, text=np.array("text"), flags=np.array([True]))
        found[name] = buffer.getvalue()
    for name in SEEDS:
        found[name] = (GOLDEN / "mae" / "checkpoints" / name).read_bytes()
    return found


# Mutations


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Overwrite, delete, insert, repeat or cut bytes, mostly near the start, which has the structure."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        start = rng.randrange(max(1, min(len(damaged), rng.choice([2000, len(damaged)]))))
        length = rng.choice([1, 4, 16])
        match rng.randrange(5):
            case 0 if damaged:
                damaged[start] = rng.randrange(256)
            case 1:
                del damaged[start : start + length]
            case 2:
                damaged[start:start] = rng.randbytes(length)
            case 3 if damaged:
                source = rng.randrange(len(damaged))
                damaged[start : start + length] = damaged[source : source + length]
            case _:
                damaged = damaged[: max(start, 16)]
    return bytes(damaged)


def of_opcodes(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, swap or insert opcodes of a pickle; what follows the pickle stays."""
    try:
        starts = [position for _, _, position in pickletools.genops(data)]
    except (ValueError, AttributeError):
        return of_bytes(data, rng)
    end = starts[-1] + 1
    opcodes = [data[a:b] for a, b in zip(starts, [*starts[1:], end], strict=True)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        place, other = rng.randrange(1, len(opcodes) + 1), rng.randrange(len(opcodes))
        match rng.randrange(6):
            case 0 if len(opcodes) > 2:
                del opcodes[place - 1]
            case 1:
                opcodes[place:place] = opcodes[other : other + rng.choice([1, 3, 10])] * rng.choice([1, 2, 50])
            case 2:
                opcodes[place - 1], opcodes[other] = opcodes[other], opcodes[place - 1]
            case 3:
                opcodes[place - 1] = random_opcode(rng)
            case 4:
                opcodes[place:place] = [random_opcode(rng) for _ in range(rng.choice([1, 2, 6]))]
            case _:
                call = b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n(" + random_opcode(rng) + b"tR"
                opcodes.insert(place, call)
    return b"".join(opcodes) + data[end:]


def random_opcode(rng: random.Random) -> bytes:
    """Return a random opcode with a valid or an excessive argument."""
    number = rng.choice(NUMBERS)
    match rng.randrange(8):
        case 0:
            return rng.choice(pickletools.opcodes).code.encode("latin1")
        case 1:
            return b"J" + struct.pack("<i", max(-(1 << 31), min(number, (1 << 31) - 1)))
        case 2:
            return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
        case 3:
            return b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n"
        case 4:
            return rng.choice([b"h", b"q"]) + bytes([rng.randrange(40)])
        case 5:
            return rng.choice([b"\x8e", b"\x8d", b"\x96"]) + struct.pack("<q", number) + rng.randbytes(4)
        case 6:
            text = rng.choice(
                [b"model", b"argparse.Namespace", b"_modules", b"data", b"storage", b"<f4", b"0", b"k" * 300]
            )
            return b"X" + struct.pack("<I", len(text)) + text
        case _:
            return rng.choice(
                [b"]", b"}", b")", b"(", b"N", b"\x88", b"t", b"R", b"b", b"\x81", b"Q", b"u", b"e", b"2"]
            )


def of_stream(data: bytes, rng: random.Random) -> bytes:
    """Change one of the pickles that a file begins with."""
    stream, parts = io.BytesIO(data), [0]
    try:
        for _ in range(5):
            for _ in pickletools.genops(stream):
                pass
            parts.append(stream.tell())
    except (ValueError, AttributeError):
        pass
    start = rng.choice(parts[:-1] or [0])
    return data[:start] + of_opcodes(data[start:], rng)


def of_entries(data: bytes, rng: random.Random) -> bytes:
    """Change the content of an archive's entries and pack them again, with right checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # mutants only; zipfile raises many types
        return of_bytes(data, rng)
    if entries:
        index = rng.randrange(len(entries)) if rng.random() < 0.4 else 0
        name, content = entries[index]
        mutate = of_opcodes if name.endswith(".pkl") and rng.random() < 0.9 else of_bytes
        entries[index] = (
            name if rng.random() < 0.95 else f"{name}{rng.choice(['', '/', '.npy'])}",
            mutate(content, rng),
        )
    if rng.random() < 0.1:
        entries.append(rng.choice(entries) if entries else ("a/data.pkl", b"\x80\x02N."))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # about two entries with the same name
        for name, content in entries:  # ZipInfo, because a plain name adds the current time
            archive.writestr(
                zipfile.ZipInfo(name), content, rng.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED])
            )
    return buffer.getvalue()


def of_directory(data: bytes, rng: random.Random) -> bytes:
    """Change fields of an archive's directory or of its entries' headers."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 2, 4])):
        signature = rng.choice([b"PK\1\2", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6"])
        places = [place for place in range(len(damaged)) if damaged.startswith(signature, place)]
        if not places:
            continue
        place = rng.choice(places) + 4 + 2 * rng.randrange(20)
        value = rng.choice(NUMBERS) & 0xFFFFFFFF
        field = rng.choice([struct.pack("<H", value & 0xFFFF), struct.pack("<I", value)])
        damaged[place : place + len(field)] = field
    return without_checksums(bytes(damaged)) if rng.random() < 0.5 else bytes(damaged)


def without_checksums(data: bytes) -> bytes:
    """Set the checksums of a zip to 0, so that the damage is not detected before it reaches the later stages."""
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        first, *rest = data.split(signature)
        data = first + b"".join(signature + part[: offset - 4] + bytes(4) + part[offset:] for part in rest)
    return data


def of_header(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON header of safetensors and update its length."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        name = rng.choice(list(header))
        entry = header[name]
        odd = [*NUMBERS, 1e300, "F32", "BOOL", "BF16", None, [], {}, [[]], True, [rng.choice(NUMBERS)], [2, 2]]
        match rng.randrange(5):
            case 0:
                header[rng.choice(["a", "", "__metadata__", "x" * 300])] = header.pop(name)
            case 1:
                header[name] = rng.choice(odd)
            case 2:
                entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(odd)
            case 3:
                numbers = entry[rng.choice(["shape", "data_offsets"])]
                numbers[rng.randrange(len(numbers))] = rng.choice(odd)
            case _:
                header["again"] = entry
        text = json.dumps(header).encode()
    except (ValueError, TypeError, LookupError, RecursionError):
        text = of_bytes(data[8 : 8 + length], rng)
    if rng.random() < 0.2:
        text = of_bytes(text, rng)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change a file with one of the mutations of its format."""
    ways: list[Mutator] = [of_bytes]
    if data[:2] == b"PK":
        ways = [
            of_entries,
            of_entries,
            of_entries,
            of_directory,
            lambda d, r: without_checksums(of_bytes(d, r)),
            of_bytes,
        ]
    elif data[:1] == b"\x80":
        ways = [of_stream, of_stream, of_stream, of_bytes]
    elif data[8:9] == b"{":
        ways = [of_header, of_header, of_bytes]
    return rng.choice(ways)(data, rng)


def mutate_folder(folder: Path, rng: random.Random) -> None:
    """Change one file of a OneFlow checkpoint, or drop it."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = path.read_bytes()
    path.unlink()
    if rng.random() < 0.9:
        path.write_bytes(of_opcodes(data, rng) if path.name == "pickled_data" else of_bytes(data, rng))


# Runs


def run(inputs: int, seed: int, folder: Path, findings: Path, watch: Watch) -> int:
    """Read `inputs` random mutants; return the number of faults."""
    rng, start = random.Random(seed), time.perf_counter()
    pool = list(seeds().items())
    counted: Counter[str] = Counter()
    for index in range(inputs):
        name, data = rng.choice(pool)
        if rng.random() < 0.03:
            name, path = "oneflow", folder / f"oneflow{index}"
            shutil.copytree(GOLDEN / "oneflow" / rng.choice(["dtypes", "model_0000001"]), path)
            mutate_folder(path, rng)
        else:
            path = folder / "weights"
            for _ in range(rng.choice([1, 1, 2, 3])):
                data = mutated(data, rng)
            path.write_bytes(data)
        outcome, fault = fault_of(path, watch)
        counted[outcome] += 1
        if fault:
            counted["faults"] += 1
            keep(path, findings / f"{seed}-{index}", f"from {name}: {fault}")
    seconds = time.perf_counter() - start
    print(f"{inputs} inputs of seed {seed} in {seconds:.0f} s: {dict(counted)}")
    return counted["faults"]


def keep(path: Path, target: Path, fault: str) -> None:
    """Save an input together with the description of its fault."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        target.write_bytes(path.read_bytes())
    target.with_name(f"{target.name}.txt").write_text(f"{fault}\n", encoding="utf-8")
    print(f"{target}: {fault}")


def run_guided(inputs: int, seed: int, folder: Path, findings: Path, watch: Watch) -> None:
    """Let libFuzzer choose mutants by code coverage; exits the process."""
    import atheris

    path, corpus = folder / "weights", folder / "corpus"
    corpus.mkdir()
    for index, data in enumerate(seeds().values()):
        (corpus / str(index)).write_bytes(data)
    counted: Counter[str] = Counter()
    start = time.perf_counter()

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        outcome, fault = fault_of(path, watch)
        counted[outcome] += 1
        if fault:
            keep(path, findings / f"guided-{seed}-{counted.total()}", fault)
        if counted.total() % 5000 == 0:
            print(f"guided: {dict(counted)} in {time.perf_counter() - start:.0f} s", flush=True)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return atheris.Mutate(data, max_size) if rng.random() < 0.3 else mutated(data, rng)[:max_size]

    for module in ("reader", "archives", "oneflow", "leaves", "pickles", "rebuild", "files"):
        for value in vars(sys.modules[f"plsc_mae.weights.{module}"]).values():
            if callable(value) and getattr(value, "__module__", "").startswith("plsc_mae.weights"):
                instrument(value, atheris.instrument_func)
    options = [f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=40000", "-timeout=60", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def instrument(value: object, wrap: Callable[[object], object]) -> None:
    """Count the branches of a function, or of a class's methods, in place."""
    if isinstance(value, type):
        for member in vars(value).values():
            if callable(member) and hasattr(member, "__code__"):
                wrap(member)
    elif hasattr(value, "__code__"):
        wrap(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20000, help="how many files to read")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"), help="folder for inputs with a fault")
    options, watch = parser.parse_args(), Watch()
    warnings.simplefilter("ignore")  # NumPy warns of odd headers, once for each kind
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_up(folder / "weights", watch)
        if options.guided:
            run_guided(options.inputs, options.seed, folder, options.findings, watch)
        return min(1, run(options.inputs, options.seed, folder, options.findings, watch))


if __name__ == "__main__":
    sys.exit(main())
