"""Encoders with parts that MAE's lacks: taken with the right features, or refused by name.

Files have timm's names and layouts: linear weights are [out, in], the rows of `attn.qkv` are those of q, k and v, each
by head. Features are compared with a forward pass in NumPy in float64, written from the definitions of the parts; 1e-5
is ten times the rounding error of float32.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.cli import COMMANDS, main
from plsc_mae.commands.explain import Explainer
from plsc_mae.commands.inspection import inspect_file
from plsc_mae.config.resolve import parse
from plsc_mae.data.demo import make_demo_data
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.classifier_weights import load_into_classifier, parts_of_start, start_from_pretraining
from plsc_mae.loading.encoder import load_encoder, newer_parts
from plsc_mae.methods.classify import build_classifier
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.pos_embed import resize_pos_embed, sincos_2d
from plsc_mae.parity.oracle import layers as oracle
from plsc_mae.weights.convert import decoded

pytestmark = [pytest.mark.compat, pytest.mark.once]
DIM, HEADS, PATCH, DEPTH = 24, 3, 8, 2
EPS = 1e-6
SIZES = {"img_size": 32, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 3}
TAKEN = {
    "plain": {},
    "layer scale": {"layer_scale": True},
    "normalized queries and keys": {"qk_norm": True},
    "registers as in timm": {"registers": 4, "rows": 0},
    "registers as in DINOv2": {"registers": 4, "layer_scale": True},
    "registers with positions": {"registers": 4, "rows": 5},
    "a register, no class token": {"registers": 1, "class_token": False},
    "no position of the class token": {"rows": 0},
    "no class token": {"class_token": False},
    "everything": {"layer_scale": True, "qk_norm": True, "registers": 2, "rows": 0},
}


def vit(grid=(4, 4), *, seed=0, layer_scale=False, qk_norm=False, registers=0, class_token=True, rows=None, **extra):
    """Return the tensors of a random ViT by timm's names; `extra` adds tensors of a shape, with `_` for `.`.

    `rows` is the number of position rows before those of the patches: by default that of the class token.
    """
    rng = np.random.default_rng(seed)
    rows = int(class_token) if rows is None else rows
    shapes = {
        "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
        "pos_embed": (1, rows + grid[0] * grid[1], DIM),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
    }
    shapes |= {"cls_token": (1, 1, DIM)} if class_token else {}
    shapes |= {"reg_token": (1, registers, DIM)} if registers else {}
    for i in range(DEPTH):
        block = {
            "attn.qkv": (3 * DIM, DIM),
            "attn.proj": (DIM, DIM),
            "mlp.fc1": (4 * DIM, DIM),
            "mlp.fc2": (DIM, 4 * DIM),
        }
        block |= dict.fromkeys(("norm1", "norm2"), (DIM,))
        block |= {name: (DIM // HEADS,) for name in ("attn.q_norm", "attn.k_norm") if qk_norm}
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.ls{n}.gamma": (DIM,) for n in (1, 2) if layer_scale}
    shapes |= {name.replace("_", "."): shape for name, shape in extra.items()}
    scale = {name: 0.3 if len(shape) in (1, 3) else 0.1 for name, shape in shapes.items()}
    tensors = {name: rng.normal(0, scale[name], shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: value + np.float32("norm" in name and name.endswith("weight")) for name, value in tensors.items()}


def forward(tensors, images, grid=(4, 4)):
    """Return the tokens [B, T + L, D] of images [B, 3, H, W] after the final norm, in float64."""
    p = {name: value.astype(np.float64) for name, value in tensors.items()}
    x = oracle.embed_patches(images.astype(np.float64), oracle.submodule(p, "patch_embed.proj"))
    prefix = [p[name] for name in ("cls_token", "reg_token") if name in p]
    rows = p["pos_embed"].shape[1] - grid[0] * grid[1]
    x = x + p["pos_embed"][:, rows:]
    if prefix:
        tokens = np.concatenate(prefix, axis=1)
        tokens[:, :rows] += p["pos_embed"][:, :rows]
        x = np.concatenate([np.broadcast_to(tokens, (len(x), *tokens.shape[1:])), x], axis=1)
    for block in oracle.stack(p, "blocks"):
        normed = _norm(x, block, "norm1")
        q, k, v = (_heads(part) for part in np.split(_linear(normed, block, "attn.qkv"), 3, axis=-1))
        if "attn.q_norm.weight" in block:
            q, k = _norm(q, block, "attn.q_norm"), _norm(k, block, "attn.k_norm")
        mixed = oracle.softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(DIM // HEADS)) @ v
        attended = _linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), block, "attn.proj")
        x = x + block.get("ls1.gamma", 1.0) * attended
        hidden = oracle.gelu(_linear(_norm(x, block, "norm2"), block, "mlp.fc1"))
        x = x + block.get("ls2.gamma", 1.0) * _linear(hidden, block, "mlp.fc2")
    return _norm(x, p, "norm")


def _linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def _norm(x, parameters, name):
    return oracle.layer_norm(x, oracle.submodule(parameters, name), EPS)


def _heads(x):
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)


@pytest.fixture
def save(tmp_path):
    """Write tensors to a file."""

    def write(tensors) -> str:
        np.savez(tmp_path / "file.npz", **tensors)
        return str(tmp_path / "file.npz")

    return write


def images(grid=(4, 4)):
    size = (2, 3, grid[0] * PATCH, grid[1] * PATCH)
    return np.random.default_rng(1).standard_normal(size, np.float32)


def features(path, grid=(4, 4), **options):
    encoder = load_encoder(path, num_heads=HEADS, **options).network
    with paddle.no_grad():
        return encoder.forward_features(paddle.to_tensor(images(grid))).numpy()


@pytest.mark.parametrize("name", TAKEN)
def test_features_are_those_of_the_definition(save, name):
    tensors = vit(**TAKEN[name])
    np.testing.assert_allclose(features(save(tensors)), forward(tensors, images()), atol=1e-5, rtol=1e-5)


RENAMED = {
    "DeiT III": {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"},
    "DINOv2": {"reg_token": "register_tokens"},
    "DINOv2 in training": {"reg_token": "register_tokens", "blocks.": "blocks.0."},
}


@pytest.mark.parametrize("name", RENAMED)
def test_names_of_other_code_bases(save, name):
    tensors = vit(layer_scale=True, registers=3, rows=1)
    renamed = {}
    for key, value in tensors.items():
        for theirs, ours in RENAMED[name].items():
            key = key.replace(theirs, ours)
        renamed[key] = value
    path = save({**renamed, "mask_token": np.zeros((1, DIM), np.float32)})
    np.testing.assert_allclose(features(path), forward(tensors, images()), atol=1e-5, rtol=1e-5)


def test_hugging_faces_dinov2(save):
    tensors = vit(layer_scale=True, registers=3, rows=1)
    start = {"reg_token": "embeddings.register_tokens", "cls_token": "embeddings.cls_token"}
    start |= {"pos_embed": "embeddings.position_embeddings", "norm.": "layernorm."}
    start |= {"patch_embed.proj.": "embeddings.patch_embeddings.projection.", "blocks.": "encoder.layer."}
    block = {"attn.proj": "attention.output.dense", ".ls1.gamma": ".layer_scale1.lambda1"}
    block |= {".ls2.gamma": ".layer_scale2.lambda1"}
    renamed = {"embeddings.mask_token": np.zeros((1, DIM), np.float32)}
    for key, value in tensors.items():
        for ours, theirs in start.items():
            key = theirs + key[len(ours) :] if key.startswith(ours) else key
        for ours, theirs in block.items():
            key = key.replace(ours, theirs)
        stem, _, kind = key.rpartition(".")
        if stem.endswith("attn.qkv"):
            parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            renamed |= {f"{stem[:-8]}attention.attention.{part}.{kind}": x for part, x in parts}
        else:
            renamed[key] = value
    np.testing.assert_allclose(features(save(renamed)), forward(tensors, images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(4, 8), (4, 6), (2, 8), (1, 3)])
@pytest.mark.parametrize("name", ["plain", "layer scale", "registers as in timm"])
def test_positions_of_a_rectangle(save, grid, name):
    """2 x 8 patches are as many as 4 x 4, and 4 x 6 with the class token as many as 5 x 5 without."""
    tensors = vit(grid, **TAKEN[name])
    size = (grid[0] * PATCH, grid[1] * PATCH)
    found = features(save(tensors), grid, input_size=size)
    np.testing.assert_allclose(found, forward(tensors, images(grid), grid), atol=1e-5, rtol=1e-5)


def test_positions_of_an_unknown_rectangle_are_refused(save):
    path = save(vit((4, 8)))
    with pytest.raises(CheckpointError, match=r"33 positions are not of a square grid; give .* --input_size H W"):
        load_encoder(path, num_heads=HEADS)
    with pytest.raises(CheckpointError, match="nor those of an image of 48 x 48"):
        load_encoder(path, num_heads=HEADS, input_size=(48,))


@pytest.mark.parametrize("grid", [(2, 8), (8, 2), (4, 6), (3, 7), (4, 4)])
@pytest.mark.parametrize("row_first", [False, True])
def test_the_rectangle_of_a_computed_table_is_recognized(save, grid, row_first):
    """No other grid has the same sines and cosines."""
    tensors = vit(grid)
    table = sincos_2d(DIM, grid, class_token=True, row_first=row_first)
    tensors["pos_embed"] = table[None].astype(np.float32)
    found = features(save(tensors), grid)
    np.testing.assert_allclose(found, forward(tensors, images(grid), grid), atol=1e-5, rtol=1e-5)


def test_a_computed_square_table_is_not_taken_for_a_rectangle(save):
    """A sin-cos table of 4 x 4 patches has as many rows as one of 2 x 8; the network has its own."""
    tensors = vit()
    tensors["pos_embed"] = sincos_2d(DIM, (4, 4), class_token=True)[None].astype(np.float32)
    found = features(save(tensors), (2, 8), input_size=(16, 64))
    tensors["pos_embed"] = sincos_2d(DIM, (2, 8), class_token=True)[None].astype(np.float32)
    np.testing.assert_allclose(found, forward(tensors, images((2, 8)), (2, 8)), atol=1e-5, rtol=1e-5)


def test_learned_positions_of_an_autoencoder_are_resized(save):
    """LiBai trains the tables that the network computes."""
    tensors = vit()
    decoder = {"decoder_embed.weight": np.zeros((8, DIM)), "mask_token": np.zeros((1, 1, 8))}
    found = features(save(tensors | decoder), (6, 4), input_size=(48, 32))
    tensors["pos_embed"] = resize_pos_embed(tensors["pos_embed"], (4, 4), (6, 4))
    np.testing.assert_allclose(found, forward(tensors, images((6, 4)), (6, 4)), atol=1e-5, rtol=1e-5)


def renamed(old: str, new: str) -> dict[str, np.ndarray]:
    return {name.replace(old, new): value for name, value in vit(layer_scale=True).items()}


def without(*ends: str, **parts) -> dict[str, np.ndarray]:
    return {name: value for name, value in vit(**parts).items() if not name.endswith(ends)}


REFUSED = {
    "SwiGLU of DINOv2": (renamed("mlp.fc1", "mlp.w12"), r"gated MLPs \(SwiGLU\), see blocks\.0\.mlp\.w12\."),
    "SwiGLU of timm": (
        vit() | {f"blocks.{i}.mlp.fc2.weight": np.zeros((DIM, 2 * DIM)) for i in range(DEPTH)},
        r"gated MLPs \(SwiGLU\), see blocks\.0\.mlp\.fc1\.weight",
    ),
    "rotary positions, stored": (vit() | {"rope.freqs": np.zeros(4)}, r"rotary positions, see rope\.freqs"),
    "rotary positions, not stored": (without("pos_embed"), r"no position table \(pos_embed\).*rotary"),
    "attention pooling": (
        vit() | {"attn_pool.latent": np.zeros((1, 1, DIM))},
        r"pooling \(MAP\), see attn_pool\.latent",
    ),
    "distillation token": (vit(rows=2) | {"dist_token": np.zeros((1, 1, DIM))}, r"distillation token, see dist_token"),
    "norm before the blocks": (vit() | {"norm_pre.weight": np.ones(DIM)}, r"norm before the blocks .*norm_pre\.weight"),
    "RMS norms": (without("norm1.bias", "norm2.bias"), r"\(RMS norm\), see blocks\.0\.norm1\.weight"),
    "RMS norms of queries": (
        without("q_norm.bias", qk_norm=True),
        r"\(RMS norm\), see blocks\.0\.attn\.q_norm\.weight",
    ),
    "norm of attention": (vit() | {"blocks.1.attn.norm.weight": np.ones(DIM)}, r"see blocks\.1\.attn\.norm\.weight"),
    "norm of patches": (
        vit() | {"patch_embed.norm.bias": np.ones(DIM)},
        r"patch embedding, see patch_embed\.norm\.bias",
    ),
    "no biases of attention": (without("attn.qkv.bias"), r"without biases of .*, see blocks\.0\.attn\.qkv\.weight"),
    "LoRA": (
        vit() | {"blocks.0.attn.qkv.lora_A.weight": np.ones((4, DIM))},
        r"merge them .*, see blocks\.0\.attn\.qkv\.lora_A",
    ),
    "unknown part": (
        vit() | {"blocks.1.gate.weight": np.ones(DIM)},
        r"1 has no place in the network \(blocks\.1\.gate\.weight\)",
    ),
    "half a layer scale": (without("1.ls2.gamma", layer_scale=True), r"missing from the file \(blocks\.1\.gamma_2\)"),
    "layer scale of one block": (
        vit() | {f"blocks.1.ls{n}.gamma": np.ones(DIM) for n in (1, 2)},
        r"2 have no place in the network \(blocks\.1\.ls1\.gamma, blocks\.1\.ls2\.gamma\)",
    ),
    "no biases": (without("mlp.fc2.bias"), r"2 are missing from the file \(blocks\.0\.mlp\.fc2\.bias, "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_without_a_place_are_refused_by_name(save, capsys, name):
    tensors, message = REFUSED[name]
    path = save(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(path, num_heads=HEADS)
    assert main(["weights", "convert", path, path.replace("file", "out"), "--dialect", "facebook"]) == 2
    assert main(["weights", "inspect", path, "--num_heads", str(HEADS)]) == 0
    assert "good for" not in capsys.readouterr().out


def test_images_of_one_channel_are_read_as_such(save, tmp_path):
    tensors = vit()
    path = save(tensors | {"patch_embed.proj.weight": tensors["patch_embed.proj.weight"][:, :1]})
    assert load_encoder(path, num_heads=HEADS).network.in_chans == 1
    assert load_encoder(path, num_heads=HEADS, in_chans=3).network.in_chans == 3
    assert {"knn", "explain", "extract"} <= set(inspect_file(path, num_heads=HEADS).uses)
    assert main(["weights", "convert", path, str(tmp_path / "out.npz"), "--dialect", "facebook"]) == 0


IDLE = {
    "head": {"head.weight": (3, DIM), "head.bias": (3,)},
    "norm behind the pooling": {"fc_norm.weight": (DIM,), "head.weight": (3, DIM), "head.bias": (3,)},
    "DINO's heads": {"dino_head.mlp.0.weight": (4, DIM), "ibot_head.last_layer.weight_g": (4, 1)},
    "decoder": {"mask_token": (1, 1, 8), "decoder_embed.weight": (8, DIM), "decoder_blocks.0.norm1.weight": (8,)},
    "counters and indices": {
        "n_averaged": (),
        "bn.num_batches_tracked": (),
        "blocks.0.attn.relative_position_index": (17, 17),
    },
}


@pytest.mark.parametrize("name", IDLE)
def test_known_idle_tensors_are_allowed(save, name):
    tensors = vit()
    found = features(save(tensors | {key: np.ones(shape, np.float32) for key, shape in IDLE[name].items()}))
    np.testing.assert_allclose(found, forward(tensors, images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TAKEN)
def test_a_classifier_starts_from_them_and_is_opened_again(save, name):
    """Parts that no option describes are found in the file, also in the checkpoint of the classifier."""
    tensors = vit(**TAKEN[name])
    stored = weights.read(save(tensors))
    parts = newer_parts(decoded(stored, HEADS), (32,))
    plain = {"positions": "learned", "class_token": "cls_token" in tensors}
    model = ImageClassifier(**SIZES, **plain, **parts, global_pool=False, fc_norm=False)
    load_into_classifier(model, stored, norm_into_fc_norm=False)
    model.eval()
    found = model.forward_features(paddle.to_tensor(images())).numpy()
    np.testing.assert_allclose(found, forward(tensors, images()), atol=1e-5, rtol=1e-5)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    assert newer_parts(weights.read(save(state)), (32,)) == parts
    exported = weights.export(model, "timm")
    assert not set(tensors) - set(exported)
    for key, value in tensors.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in ("plain",)])
def test_other_dialects_have_no_place_for_them(save, tmp_path, name):
    path = save(vit(**TAKEN[name]))
    network = load_encoder(path, num_heads=HEADS).network
    for dialect in ("facebook", "huggingface", "mmpretrain"):
        with pytest.raises(
            ConfigError, match=r"cannot represent all tensors of this network; dialects that can: .*timm"
        ):
            weights.save(network, tmp_path / "out.pth", dialect)
    weights.save(network, tmp_path / "out.pth", "timm")
    np.testing.assert_array_equal(features(str(tmp_path / "out.pth")), features(path))


@pytest.mark.parametrize("head", [{}, {"head.weight": np.ones((3, DIM)), "head.bias": np.zeros(3)}])
def test_an_unknown_rectangle_is_converted_bit_by_bit(save, tmp_path, capsys, head):
    """The order of positions is all that a conversion needs; only a Hugging Face folder states the image size."""
    tensors = vit((4, 8)) | head
    path, out = save(tensors), tmp_path / "out.pth"
    assert main(["weights", "convert", path, str(out), "--dialect", "timm"]) == 0
    for key, value in weights.read(out).model.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)
    flags = ["--dialect", "huggingface", "--num_heads", str(HEADS)]
    assert main(["weights", "convert", path, str(tmp_path / "hf"), *flags]) == 2
    assert ("a classifier" if head else "rectangular images") in capsys.readouterr().err


def test_the_proposed_training_has_the_width_of_the_mlps(save):
    tensors = vit()
    for i in range(DEPTH):
        narrow = {"fc1.weight": (2 * DIM, DIM), "fc1.bias": (2 * DIM,), "fc2.weight": (DIM, 2 * DIM)}
        tensors |= {f"blocks.{i}.mlp.{name}": np.ones(shape, np.float32) for name, shape in narrow.items()}
    uses = inspect_file(save(tensors), num_heads=HEADS).uses
    for name in ("finetune", "linprobe"):
        assert " --mlp_ratio 2.0 " in uses[name]
    assert not any("--mlp_ratio" in line for line in inspect_file(save(vit()), num_heads=HEADS).uses.values())


LOOKING = {"knn", "explain", "extract", "segprobe", "export"}
LAYERS = {"plain": "", "layer scale": "layer scale", "registers as in timm": "register tokens 4"}


@pytest.mark.parametrize("name", TAKEN)
def test_inspect_proposes_only_what_accepts_the_file(save, capsys, name):
    """Every proposed command's loader is run on the file."""
    path = save(vit(**TAKEN[name]))
    found = inspect_file(path, num_heads=HEADS)
    training = {"finetune", "linprobe"}  # whose classifiers of MAE have a class token
    assert LOOKING | (set() if "no class token" in name else training) == set(found.uses)
    assert "reconstruct" in found.misfits
    for use, line in found.uses.items():
        config = parse(line.split()[2:], COMMANDS[use].configs, prog=use)
        if use in LOOKING:
            load_encoder(config.model_path, num_heads=config.num_heads, input_size=config.input_size)
            if use == "explain":
                assert Explainer(config).registers == TAKEN[name].get("registers", 0)
        else:
            model = build_classifier(config, 3, **parts_of_start(config))
            start_from_pretraining(model, config, weights.read_network(config.finetune))
    assert main(["weights", "inspect", path]) == 0
    assert LAYERS.get(name, "") in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("use", ["finetune", "linprobe"])
def test_a_classifier_of_newer_parts_is_trained_resumed_and_used(save, tmp_path, use):
    """The command's checkpoint has the parts; no option describes them."""
    make_demo_data(tmp_path / "data", image_size=32, train_per_class=2, val_per_class=1)
    path = save(vit(layer_scale=True, qk_norm=True, registers=2, rows=0))
    sizes = f"--patch_size {PATCH} --embed_dim {DIM} --depth {DEPTH} --num_heads {HEADS} --input_size 32"
    run = f"--model vit_base_patch16 {sizes} --finetune {path} --data_path {tmp_path}/data --output_dir {tmp_path}/run"
    run += " --batch_size 10 --warmup_epochs 0 --lr 1e-3 --num_workers 0 --device cpu --epochs 2"
    assert main([use, *run.split(), "--max_train_step", "2"]) == 0
    assert main([use, *run.split(), "--auto_resume"]) == 0
    checkpoint = f"{tmp_path}/run/checkpoint-1.pd"
    stored = weights.read(checkpoint).model
    assert {"encoder.register_tokens", "encoder.blocks.1.gamma_2", "encoder.blocks.0.attn.k_norm.bias"} <= set(stored)
    images = f"{tmp_path}/data/val"
    device = ["--device", "cpu"]
    assert main(["predict", "--model_path", checkpoint, "--img_path", images, "--num_workers", "0", *device]) == 0
    assert main([use, *run.split(), "--eval", "--resume", checkpoint]) == 0
