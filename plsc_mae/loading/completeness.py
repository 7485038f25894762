"""The rule of the loaders: a file and a network must have the same tensors, apart from known exceptions.

If the file lacks a tensor of the network, the network keeps random values there. If the network lacks a tensor of the
file, that tensor is ignored. Either case can change the features silently, so it is an error, except for tensors listed
here or named by a loader.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from paddle import nn

from plsc_mae.errors import CheckpointError
from plsc_mae.weights import LoadReport
from plsc_mae.weights.dialects.base import Array, Dialect
from plsc_mae.wording import counted

OPTIONS_REMEDY = "give the model and the options that it was trained with; `plsc-mae weights inspect FILE` prints them"
LIBRARY_REMEDY = "plsc_mae has no such network; use the library that trained it"
COMPLETE_REMEDY = "use a complete file"
_SHOWN = 3  # names in a message

# Name suffixes of computed tables, and of counters that no code reads.
COMPUTED = ("relative_position_index", "num_batches_tracked", "position_ids", "n_averaged")

# Name prefixes of frozen networks that compute targets; the network that is loaded need not have such a part.
TEACHERS = ("alignment_encoder.", "teacher.", "teacher_network.", "momentum_encoder.")

# Names and name prefixes outside the encoder, in the base naming of all dialects: tokens and networks of pre-training,
# teachers, heads and poolings. They are matched by `belongs_to`.
BESIDE_THE_ENCODER = (
    *("mask_token", "encoder.mask_token", "decoder.", "decoder_", "neck."),
    *("regressor.", "regresser.", "regressor_and_decoder.", "encoder_to_", "bridge.", "bridge_norm.", "rd_pos_embed"),
    *TEACHERS,
    *("head.", "fc_norm.", "pre_logits.", "pooler.", "query_token", "attentive_blocks.", "linear_blocks."),
    *("dino_head.", "ibot_head.", "projector.", "predictor.", "projection_head.", "extra."),
)

# The same for names that belong to no network of pre-training: teachers, and heads for other purposes.
BESIDE_A_NETWORK = (
    *TEACHERS,
    *("head.", "fc_norm.", "dino_head.", "ibot_head.", "projector.", "predictor.", "projection_head.", "extra."),
)

# (pattern of a tensor's name in any dialect, the part of a network that plsc_mae lacks)
_UNSUPPORTED = (
    (r"\bmlp\.(w12|w1|w2|w3|fc1_g|fc1_x|weights_in|weights_out|gate_proj|up_proj)\b", "gated MLPs (SwiGLU)"),
    (r"\bmlp\.norm\.|\battn\.(norm|inner_attn_ln|ln)\.|\bffn_ln\.", "norms inside attention or MLP"),
    (r"\brope\b|\brope_embed\b|\brotary|\binv_freq\b|freqs_(cos|sin)|\bperiods\b", "rotary positions"),
    (r"\battn_pool\.|\bhead\.(probe|attention)\b|\bmap_head\b", "attention pooling (MAP)"),
    (r"\bdist_token\b|\bdistillation_token\b|\bhead_dist\b|\bdistillation_classifier\b", "a distillation token"),
    (r"\bnorm_pre\.|\bpre_layrnorm\.|\bln_pre\.", "a norm before the blocks (CLIP)"),
    (r"\bpatch_embed\.(norm|backbone|stem|conv|proj\.\d)", "another patch embedding"),
    (r"\blora_|\badapter", "adapters (LoRA); merge them into the weights first"),
    (r"\bnorm\d?_(img|txt)\b|\bcross_attn\b|\bself_attn\b", "another kind of block"),
    (r"\battns\.\d|\bffns\.\d|\bin_proj\.|\bmlp_out_proj\.", "parallel attention and MLP"),
)


def belongs_to(name: str, parts: Iterable[str]) -> bool:
    """Return whether a name is one of `parts`, or starts with one of them that ends in `.` or `_`."""
    return any(name.startswith(part) if part.endswith((".", "_")) else name == part for part in parts)


def unsupported_part(names: Iterable[str]) -> str:
    """Return text that names an unsupported part and the tensor that reveals it; "" if no name reveals one."""
    for name in names:
        for pattern, part in _UNSUPPORTED:
            if re.search(pattern, name):
                return f"{part}, see {name}"
    return ""


def refuse_unsupported(tensors: Mapping[str, Array], rules: Dialect, path: str) -> None:
    """Raise CheckpointError if tensors, in base naming, show a part of an encoder that plsc_mae lacks.

    The names of all tensors except those of `BESIDE_THE_ENCODER` are examined, and the tensors of the first block.
    """
    start = rules.foreign_name("encoder.blocks.0.")
    found = unsupported_part(name for name in tensors if not belongs_to(name, BESIDE_THE_ENCODER))
    norms = (f"{start}norm1", f"{start}attn.q_norm", f"{start}attn.k_norm")
    without_shift = [norm for norm in norms if f"{norm}.weight" in tensors and f"{norm}.bias" not in tensors]
    fc1, fc2 = (tensors.get(f"{start}mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    attention = [f"{start}attn.{name}" for name in ("qkv.weight", "qkv.bias", "q_bias")]
    if not found and [name in tensors for name in attention] == [True, False, False]:
        found = f"attention without biases of queries, keys and values, see {attention[0]}"
    if not found and without_shift:
        found = f"norms without a shift (RMS norm), see {without_shift[0]}.weight"
    if not found and fc1 is not None and fc2 is not None and fc1.ndim == fc2.ndim == 2:
        outer, inner = (0, 1) if rules.transposes_linear else (1, 0)
        if fc1.shape[outer] == 2 * fc2.shape[inner]:
            found = f"gated MLPs (SwiGLU), see {start}mlp.fc1.weight, which is twice as wide as the next layer"
    if found:
        raise CheckpointError(f"{path} holds a network with {found}; {LIBRARY_REMEDY}")


def fixed_tables(network: nn.Layer) -> set[str]:
    """Return the names of the position tables that a network computes; a file may lack them."""
    return {name for name, _ in network.named_buffers() if name.endswith("pos_embed")}


def left_over(report: LoadReport, idle: Collection[str] = ()) -> list[str]:
    """Return the names of the file's tensors that have no place in the network and are not a known exception.

    Args:
        report: the result of loading.
        idle: names and name prefixes of tensors that the caller does not need, such as `BESIDE_THE_ENCODER`.
    """
    return [name for name in report.unexpected if not name.endswith(COMPUTED) and not belongs_to(name, idle)]


def require_complete(
    network: nn.Layer,
    report: LoadReport,
    path: str,
    *,
    idle: Collection[str] = (),
    absent: Collection[str] = (),
    part: str = "network",
    by_options: bool = True,
) -> None:
    """Check that a file has exactly the tensors of a network, apart from known exceptions.

    Args:
        network: the network that was loaded; the position tables that it computes may be missing.
        report: the result of loading.
        path: the file, for the message.
        idle: see `left_over`.
        absent: names of further tensors of the network that the file may lack.
        part: the part that was loaded, for the message.
        by_options: True if the user's options determined the network, False if the file did; the message's remedy
            depends on it.

    Raises:
        CheckpointError: a tensor is missing or left over; the message names the first three of each kind.
    """
    allowed = fixed_tables(network) | set(absent)
    missing = [name for name in report.missing if name not in allowed]
    surplus = left_over(report, idle)
    if not missing and not surplus:
        return
    found = [f"{counted(len(report.matched), 'tensor')} matched ({report.dialect})"]
    verb, other = "is" if len(missing) == 1 else "are", "has" if len(surplus) == 1 else "have"
    found += [f"{len(missing)} {verb} missing from the file ({_first(missing)})"] if missing else []
    found += [f"{len(surplus)} {other} no place in the network ({_first(surplus)})"] if surplus else []
    unsupported = unsupported_part(surplus)
    reason = f": it has {unsupported}, which plsc_mae lacks" if unsupported else ""
    remedy = OPTIONS_REMEDY if by_options else LIBRARY_REMEDY if surplus else COMPLETE_REMEDY
    what = f"another {part}" if surplus or by_options else f"an incomplete {part}"
    raise CheckpointError(f"{path} holds {what}: {', '.join(found)}{reason}; {remedy}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
