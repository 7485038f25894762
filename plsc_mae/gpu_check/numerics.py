"""Checks of numbers: flash against plain attention, mixed precision against float32, repeated updates."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.gpu_check.results import Number, Result, judged
from plsc_mae.gpu_check.runs import Prepared, PublishedRun, prepare, published_runs, run_config
from plsc_mae.models.attention import attention, record_attention, uses_flash
from plsc_mae.models.deterministic import choose_kernels, table_rows
from plsc_mae.parallel.gpu import amp_types, current_capability
from plsc_mae.parallel.world import World
from plsc_mae.train.step import Verdict

# (queries, keys, width of a head) of MAE's encoder and decoder, and of CAE's encoder and regressor
ATTENTION_SHAPES = ((50, 50, 64), (197, 197, 32), (122, 122, 64), (75, 197, 64))
HEADS, IMAGES = 12, 8
SIGNIFICANT_BITS = {"float16": 11, "bfloat16": 8, "float32": 24}
TOLERATED_UNITS = 8  # of the last significant bit of the largest value
LOSS_TOLERANCE, NORM_TOLERANCE = 0.02, 0.1  # relative, of mixed precision
LOSS_SCALES = 6  # loss scales to try while gradients overflow
SMALL = {"batch_size": 8, "depth": 4}  # options that differ from the published ones in the checks of training on a GPU
UPDATES = 3
KERNELS = ("deterministic", "fast")
TABLE, LOOKUPS = (732, HEADS), 197 * 197  # CAE's relative positions of an image of 14 x 14 patches


def check_attention(gpu: bool) -> Result:
    """Compare attention and its gradients in each 16-bit type of the GPU with plain matrix products in float32.

    Without `gpu` attention runs in float32 too. The outcome is "skipped" on a GPU without mixed precision.
    """
    numbers: dict[str, Number] = {}
    good, kernels = True, set()
    for dtype in amp_types(current_capability()) if gpu else ("float32",):
        for queries, keys, width in ATTENTION_SHAPES:
            flash = gpu and uses_flash(width, current_capability(), half=True, plain=False)
            error = max(_attention_errors(queries, keys, width, dtype))
            good &= error <= TOLERATED_UNITS * 2.0 ** -SIGNIFICANT_BITS[dtype]
            kernels.add("flash" if flash else "plain")
            numbers[f"{dtype} {queries}x{keys}x{width} {'flash' if flash else 'plain'}"] = error
    if not numbers:
        return Result("attention", "skipped", "this GPU has no mixed precision, so attention runs in float32")
    worst = max(float(value) for value in numbers.values())
    names = " and ".join(sorted(kernels))
    summary = f"{names} attention differs from float32 products by {worst:.1e} of the largest value at most"
    return judged("attention", good=good, summary=summary, numbers=numbers)


def _attention_errors(queries: int, keys: int, width: int, dtype: str) -> Iterator[float]:
    """Yield the relative errors of the output and of the gradients of q, k and v."""
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal([IMAGES, HEADS, n, width]).astype(np.float32) for n in (queries, keys, keys, queries)]
    rounded = [paddle.to_tensor(values).astype(dtype) for values in drawn]
    exact = [values.astype("float32").clone() for values in rounded]
    with record_attention():  # forces the plain products
        expected = _outputs_and_gradients(exact)
    for ours, reference in zip(_outputs_and_gradients(rounded), expected, strict=True):
        yield relative_error(ours, reference)


def _outputs_and_gradients(tensors: list[Tensor]) -> list[npt.NDArray[np.float32]]:
    *inputs, upstream = tensors
    for x in inputs:
        x.stop_gradient = False
    out = attention(*inputs)
    (out * upstream).astype("float32").sum().backward()
    return [x.astype("float32").numpy() for x in (out, *(x.grad for x in inputs))]


def relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the largest difference divided by the largest expected magnitude; infinity if `found` is not finite."""
    if not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_mixed_precision(gpu: bool) -> Result:
    """Compare loss and gradient norm in mixed precision with those in float32, for smaller networks of published runs.

    Without `gpu` both are computed in float32. The outcome is "skipped" on a GPU without mixed precision.
    """
    dtypes = amp_types(current_capability()) if gpu else ("auto",)
    if not dtypes:
        return Result("precision", "skipped", "this GPU has no mixed precision")
    numbers: dict[str, Number] = {}
    good, worst, world = True, 0.0, World("gpu" if gpu else "cpu")
    for run in published_runs():
        config = run_config(run, gpu=gpu, **(SMALL if gpu else {}))
        prepared = prepare(run, config, world)
        loss, norm = _loss_and_norm(prepared, world, "none")
        numbers |= {f"{run.name} float32 loss": loss, f"{run.name} float32 norm": norm}
        for dtype in dtypes:
            low_loss, low_norm = _loss_and_norm(prepared, world, dtype)
            numbers |= {f"{run.name} {dtype} loss": low_loss, f"{run.name} {dtype} norm": low_norm}
            finite = math.isfinite(low_loss) and math.isfinite(low_norm)
            errors = abs(low_loss / loss - 1), abs(low_norm / norm - 1)
            good &= finite and errors[0] <= LOSS_TOLERANCE and errors[1] <= NORM_TOLERANCE
            worst = max(worst, *errors) if finite else math.inf
    kind = "mixed precision" if gpu else "float32 (a CPU has no mixed precision)"
    summary = f"losses and gradient norms in {kind} differ from float32 by {worst:.1e} at most"
    return judged("precision", good=good, summary=summary, numbers=numbers)


def _loss_and_norm(prepared: Prepared, world: World, dtype: str) -> tuple[float, float]:
    """Return loss and gradient norm of the batch, with up to LOSS_SCALES loss scales while the norm overflows.

    `dtype` "none" is float32.
    """
    options = {"amp": False} if dtype == "none" else {"amp_dtype": dtype}
    stepper = prepared.stepper(dataclasses.replace(prepared.config, **options), world)
    for _ in range(LOSS_SCALES):
        paddle.seed(1)
        loss = float(stepper.forward_backward(prepared.task.prepare(dict(prepared.batch))).loss)
        norm = float(stepper.apply_update(lambda _: Verdict.DISCARD).norm)
        if math.isfinite(norm) or not stepper.scaler.enabled:
            break
        stepper.scaler.update(good=False)
    return loss, norm


def check_determinism(gpu: bool) -> Result:
    """Run updates, table lookups and attention twice from equal states, and compare the bits.

    This is done with deterministic and with fast kernels; only differences with deterministic kernels count.
    Deterministic kernels run first, because cuBLAS reads its environment variable only before its first product. For
    the same reason this check needs a process of its own.
    """
    numbers: dict[str, bool] = {}
    world = World("gpu" if gpu else "cpu")
    try:
        for name in KERNELS:
            choose_kernels(deterministic=name == "deterministic")
            for run in published_runs():
                numbers[f"{run.name} updates {name}"] = _repeats(partial(_updated, run, world, gpu=gpu))
            numbers[f"table lookups {name}"] = _repeats(_looked_up)
            numbers[f"attention {name}"] = _repeats(partial(_attended, gpu=gpu))
    finally:
        choose_kernels(deterministic=False)
    good = all(value for name, value in numbers.items() if name.endswith("deterministic"))
    repetitions = len(numbers) // 2
    equal, fast = (sum(value for name, value in numbers.items() if name.endswith(kind)) for kind in KERNELS)
    summary = f"{equal} of {repetitions} repetitions have equal bits with deterministic kernels, {fast} with fast ones"
    return judged("determinism", good=good, summary=summary, numbers=numbers)


def _repeats(compute: Callable[[], str]) -> bool:
    return compute() == compute()


def _updated(run: PublishedRun, world: World, *, gpu: bool) -> str:
    """Return a digest of the losses of UPDATES updates and of the weights after them."""
    prepared = prepare(run, run_config(run, gpu=gpu, **(SMALL if gpu else {})), world)
    stepper = prepared.stepper(prepared.config, world)
    digest = hashlib.sha256()
    for update in range(UPDATES):
        paddle.seed(update)
        loss = stepper.forward_backward(prepared.task.prepare(dict(prepared.batch))).loss
        stepper.apply_update()
        digest.update(loss.numpy().tobytes())
    for param in prepared.task.parameters():
        digest.update(param.numpy().tobytes())
    return digest.hexdigest()


def _looked_up() -> str:
    """Return a digest of the gradient of a table whose rows are looked up many times."""
    rng = np.random.default_rng(0)
    table = paddle.to_tensor(rng.standard_normal(TABLE).astype(np.float32), stop_gradient=False)
    ids = paddle.to_tensor(rng.integers(0, TABLE[0], [LOOKUPS]))
    upstream = paddle.to_tensor(rng.standard_normal([LOOKUPS, TABLE[1]]).astype(np.float32))
    (table_rows(table, ids) * upstream).sum().backward()
    return hashlib.sha256(table.grad.numpy().tobytes()).hexdigest()


def _attended(*, gpu: bool) -> str:
    """Return a digest of output and gradients of attention, in the GPU's preferred 16-bit type or else in float32."""
    types = amp_types(current_capability()) if gpu else ()
    rng = np.random.default_rng(0)
    queries, keys, width = ATTENTION_SHAPES[1]
    shapes = ([IMAGES, HEADS, n, width] for n in (queries, keys, keys, queries))
    tensors = [paddle.to_tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    parts = _outputs_and_gradients([x.astype(types[0] if types else "float32") for x in tensors])
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
