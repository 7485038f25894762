"""Names of other code bases: all tensors of CAE and its ports, official files, classifiers, inferred sizes.

Outputs of the official files are compared as recorded with them: rtol 1e-4, atol 2e-5, losses 1e-5.
"""

from __future__ import annotations

import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from plsc_mae import weights
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.losses import squared_error
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.registry import find_variant
from plsc_mae.weights.dialects import DIALECTS, detect, find_dialect
from plsc_mae.weights.dialects.cae import infer_arguments
from plsc_mae.weights.dialects.encoder import infer_encoder

pytestmark = [pytest.mark.compat, pytest.mark.once]

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SIZES |= {"decoder_embed_dim": 24, "regressor_depth": 2, "num_decoder_self_attention": 2, "decoder_num_heads": 3}
SIZES |= {"decoder_num_classes": 16}
BRIDGED = {**SIZES, "decoder_embed_dim": 16, "decoder_num_heads": 2, "dual_path_ema": 0.5}
RECORDED = {**SIZES, "dual_path_ema": 0.5, "regressor_depth": 1, "num_decoder_self_attention": 1}
# Ours, theirs.
NAMES = {
    "cae": """
    mask_token                             mask_token
    encoder.cls_token                      encoder.cls_token
    encoder.pos_embed                      encoder.pos_embed
    encoder.patch_embed.proj.bias          encoder.patch_embed.proj.bias
    encoder.blocks.1.gamma_1               encoder.blocks.1.gamma_1
    encoder.blocks.1.attn.q_bias           encoder.blocks.1.attn.q_bias
    encoder.blocks.1.mlp.fc1.weight        encoder.blocks.1.mlp.fc1.weight
    encoder.norm.weight                    encoder.norm.weight
    alignment_encoder.blocks.0.norm1.bias  alignment_encoder.blocks.0.norm1.bias
    bridge.weight                          encoder_to_regresser.weight
    bridge_norm.weight                     encoder_to_regresser_norm.weight
    regressor.blocks.1.gamma_1             regresser.regressor_blocks.1.gamma_1_cross
    regressor.blocks.0.gamma_2             regresser.regressor_blocks.0.gamma_2_cross
    regressor.blocks.1.norm_q.weight       regresser.regressor_blocks.1.norm1_q.weight
    regressor.blocks.1.norm_k.bias         regresser.regressor_blocks.1.norm1_k.bias
    regressor.blocks.1.norm_v.bias         regresser.regressor_blocks.1.norm1_v.bias
    regressor.blocks.1.norm2.weight        regresser.regressor_blocks.1.norm2_cross.weight
    regressor.blocks.1.cross_attn.k.weight regresser.regressor_blocks.1.cross_attn.k.weight
    regressor.blocks.0.cross_attn.v_bias   regresser.regressor_blocks.0.cross_attn.v_bias
    regressor.blocks.1.mlp.fc2.weight      regresser.regressor_blocks.1.mlp_cross.fc2.weight
    regressor.norm.bias                    regresser.norm.bias
    decoder.blocks.1.gamma_2               decoder.decoder_blocks.1.gamma_2
    decoder.blocks.1.attn.qkv.weight       decoder.decoder_blocks.1.attn.qkv.weight
    decoder.norm.weight                    decoder.norm.weight
    decoder.head.bias                      decoder.head.bias
    """,
    "plsc_cae": """
    mask_token                             mask_token
    encoder.cls_token                      encoder.cls_token
    encoder.pos_embed                      encoder.pos_embed
    encoder.patch_embed.proj.bias          encoder.patch_embed.proj.bias
    encoder.blocks.1.gamma_1               encoder.blocks.1.gamma_1
    encoder.blocks.1.attn.q_bias           encoder.blocks.1.attn.q_bias
    encoder.blocks.1.mlp.fc1.weight        encoder.blocks.1.mlp.fc1.weight
    encoder.norm.weight                    encoder.norm.weight
    alignment_encoder.blocks.0.norm1.bias  teacher_network.blocks.0.norm1.bias
    bridge.weight                          encoder_to_decoder.weight
    bridge_norm.weight                     encoder_to_decoder_norm.weight
    regressor.blocks.1.gamma_1             regressor_and_decoder.blocks.1.gamma_1_cross
    regressor.blocks.0.gamma_2             regressor_and_decoder.blocks.0.gamma_2_cross
    regressor.blocks.1.norm_q.weight       regressor_and_decoder.blocks.1.norm1_q_cross.weight
    regressor.blocks.1.norm_k.bias         regressor_and_decoder.blocks.1.norm1_k_cross.bias
    regressor.blocks.1.norm_v.bias         regressor_and_decoder.blocks.1.norm1_v_cross.bias
    regressor.blocks.1.norm2.weight        regressor_and_decoder.blocks.1.norm2_cross.weight
    regressor.blocks.1.cross_attn.k.weight regressor_and_decoder.blocks.1.cross_attn.k.weight
    regressor.blocks.0.cross_attn.v_bias   regressor_and_decoder.blocks.0.cross_attn.v_bias
    regressor.blocks.1.mlp.fc2.weight      regressor_and_decoder.blocks.1.mlp_cross.fc2.weight
    regressor.norm.bias                    regressor_and_decoder.norm.bias
    decoder.blocks.1.gamma_2               regressor_and_decoder.self_att_blocks.1.gamma_2
    decoder.blocks.1.attn.qkv.weight       regressor_and_decoder.self_att_blocks.1.attn.qkv.weight
    decoder.norm.weight                    regressor_and_decoder.norm2.weight
    decoder.head.bias                      regressor_and_decoder.head.bias
    """,
}


def tiny(**options) -> ContextAutoencoder:
    return ContextAutoencoder(**{**BRIDGED, **options})


def shapes(root, name: str) -> dict[str, np.ndarray]:
    """Return tensors of zeros in the shapes of a published size; they take no memory."""
    recorded = json.loads((root / "tests/golden/cae/cae_pretrain_shapes.json").read_text())[name]["params"]
    if isinstance(recorded, list):
        recorded = {row["name"]: row["shape"] for row in recorded}
    return {foreign: np.broadcast_to(np.float32(0), shape) for foreign, shape in recorded.items()}


@pytest.mark.parametrize("dialect", NAMES)
def test_names(dialect):
    known = set(tiny().state_dict())
    for line in NAMES[dialect].strip().splitlines():
        ours, theirs = line.split()
        assert ours in known
        assert DIALECTS[dialect].foreign_name(ours) == theirs


@pytest.mark.parametrize("dialect", NAMES)
def test_names_of_the_tenth_block_are_not_those_of_the_first(dialect):
    rename = DIALECTS[dialect].foreign_name
    assert rename("regressor.blocks.10.norm_q.weight") == rename("regressor.blocks.1.norm_q.weight").replace(
        "blocks.1.", "blocks.10."
    )


@pytest.mark.parametrize("options", [{}, {"layer_scale_init_value": 0.0, "decoder_layer_scale_init_value": 0.0}])
@pytest.mark.parametrize("dialect", NAMES)
def test_every_tensor_goes_out_and_comes_back(dialect, options):
    ours, other = tiny(**options), tiny(**options)
    exported = weights.export(ours, dialect)
    assert len(exported) == len(ours.state_dict())  # all names are different
    assert detect(exported) == dialect
    report = weights.load(other, exported)
    assert (report.dialect, report.missing, report.unexpected) == (dialect, [], [])
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


def test_layouts():
    model = tiny()
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    official, port = (weights.export(model, dialect) for dialect in ("cae", "plsc_cae"))
    key = "blocks.0.cross_attn.q.weight"
    np.testing.assert_array_equal(official[f"regresser.regressor_{key}"], ours[f"regressor.{key}"].T)
    np.testing.assert_array_equal(port[f"regressor_and_decoder.{key}"], ours[f"regressor.{key}"])
    for name in ("mask_token", "encoder.patch_embed.proj.weight", "encoder.pos_embed"):
        np.testing.assert_array_equal(official[name], ours[name])


def test_the_official_names_are_the_recorded_ones(golden):
    recorded = golden("cae/checkpoints/cae_pretrain_expected").meta["model_keys"]
    model = tiny(**RECORDED)
    found = {name: list(value.shape) for name, value in weights.export(model, "cae").items()}
    assert found == recorded


@pytest.mark.parametrize("name", ["cae_pretrain_checkpoint-1.pth", "cae_pretrain_legacy_modelonly.pth"])
def test_the_official_files(golden, root, name):
    case, file = golden("cae/checkpoints/cae_pretrain_expected"), root / "tests/golden/cae/checkpoints" / name
    stored = weights.read(file)
    assert stored.dialect == "cae"
    arguments = infer_arguments(stored.model, find_dialect("cae"), str(file))
    assert (arguments["num_heads"], arguments["decoder_num_heads"]) == (None, None)  # the width is not published
    classes = case.meta["constructor"]["vocab"]
    model = ContextAutoencoder(**{**arguments, "num_heads": 3, "decoder_num_heads": 3, "decoder_num_classes": classes})
    report = weights.load(model, stored)
    assert report.missing == []
    assert report.unexpected == []
    exported = weights.export(model, "cae")
    assert set(exported) == set(stored.model)  # also the alignment encoder, without which the original would not resume
    for key, norm in zip(case.meta["model_keys"], case["output/param_norm"], strict=True):
        if key in exported:
            assert np.linalg.norm(exported[key].astype(np.float64)) == pytest.approx(norm, rel=1e-6), key

    model.eval()
    mask = case["input/bool_masked_pos"].astype(bool)
    out = model(paddle.to_tensor(case["input/x"]), paddle.to_tensor(mask))
    for ours, theirs in ((out.logits, "logits"), (out.latent, "latent_predict"), (out.latent_target, "latent_target")):
        np.testing.assert_allclose(ours.numpy(), case[f"output/{theirs}"], rtol=1e-4, atol=2e-5, err_msg=theirs)
    main = F.cross_entropy(out.logits, paddle.to_tensor(case["input/tokens"][mask].astype(np.int64)))
    align = squared_error(out.latent, out.latent_target)
    assert float(main) == pytest.approx(float(case["output/loss_main"]), rel=1e-5)
    assert float(align) == pytest.approx(float(case["output/loss_align_mse"]), rel=1e-5)


def test_an_averaged_encoder_takes_the_files_copy(root):
    """With --dual_path_ema the alignment encoder of an official file is loaded and not reported."""
    file = root / "tests/golden/cae/checkpoints/cae_pretrain_legacy_modelonly.pth"
    model = tiny(**RECORDED)
    report = weights.load(model, file)
    assert (report.missing, report.unexpected) == ([], [])
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.testing.assert_array_equal(state["alignment_encoder.norm.bias"], state["encoder.norm.bias"])
    assert state["encoder.norm.bias"].any()


def test_a_file_of_a_port(tmp_path):
    """PLSC saves the state dict with options and optimizer, and omits its second encoder and fixed tables."""
    model, file = tiny(dual_path_ema=0.0), tmp_path / "ep800_checkpoint-799.pd"
    tensors = {n: paddle.to_tensor(v) for n, v in weights.export(model, "plsc_cae").items() if n != "rd_pos_embed"}
    paddle.save({"model": tensors, "optimizer": {}, "epoch": 799, "scaler": {}}, str(file))
    other = tiny(dual_path_ema=0.0)
    stored = weights.read(file)
    assert stored.dialect == "plsc_cae"
    report = weights.load(other, stored)
    assert (report.missing, report.unexpected) == (["rd_pos_embed"], [])
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("dialect", NAMES)
def test_sizes_are_read_off_shapes(dialect):
    model = tiny(in_chans=3, layer_scale_init_value=0.0, regressor_depth=1)
    arguments = infer_arguments(weights.export(model, dialect), find_dialect(dialect), "file")
    expected = {**BRIDGED, "in_chans": 3, "layer_scale_init_value": 0.0, "decoder_layer_scale_init_value": 0.1}
    expected |= {"regressor_depth": 1, "num_heads": None, "decoder_num_heads": None, "abs_pos_emb": False}
    del expected["dual_path_ema"], expected["decoder_num_classes"]
    assert arguments == expected


@pytest.mark.parametrize("learned", [False, True])
def test_learned_positions_are_told_from_the_table(learned):
    arrays = weights.export(tiny(abs_pos_emb=learned), "cae")
    assert infer_arguments(arrays, find_dialect("cae"), "file")["abs_pos_emb"] is learned


@pytest.mark.parametrize(
    ("name", "heads", "decoder_heads"),
    [
        ("tiny_decoder768", 12, 12),
        ("small_decoder768", 12, 12),
        ("base_decoder768", 12, 12),
        ("large_decoder768", 16, 12),
        ("large_decoder1024", 16, 12),
    ],
)
def test_heads_of_published_widths_are_known(root, name, heads, decoder_heads):
    tensors = shapes(root, name)
    assert detect(tensors) == "cae"
    arguments = infer_arguments(tensors, find_dialect("cae"), name)
    size, _, width = name.partition("_decoder")
    variant = find_variant(f"cae_{size}_patch16_224_8k_vocab").arguments
    assert arguments == {
        **variant,
        **{"img_size": 224, "in_chans": 3, "num_heads": heads, "decoder_num_heads": decoder_heads},
        **{"decoder_embed_dim": int(width), "regressor_depth": 4, "num_decoder_self_attention": 4},
        **{"layer_scale_init_value": 0.1, "decoder_layer_scale_init_value": 0.1, "abs_pos_emb": False},
    }


def test_sixteen_heads_of_a_wide_decoder_are_told_from_twelve(root):
    tensors = shapes(root, "large_decoder1024")
    assert tensors["regresser.regressor_blocks.0.cross_attn.q_bias"].shape == (1020,)
    wide = {**tensors, "regresser.regressor_blocks.0.cross_attn.q_bias": np.broadcast_to(np.float32(0), (1024,))}
    assert infer_arguments(wide, find_dialect("cae"), "file")["decoder_num_heads"] == 16


def test_files_without_what_predicts_are_refused():
    exported = weights.export(tiny(), "cae")
    del exported["mask_token"]
    with pytest.raises(CheckpointError, match=r"^FILE .*mask token"):
        infer_arguments(exported, find_dialect("cae"), "FILE")
    encoder = {name: value for name, value in exported.items() if name.startswith("encoder.")}
    assert detect(encoder) == ""
    with pytest.raises(CheckpointError, match="no known dialect has these names"):
        weights.load(tiny(), encoder)


def test_networks_and_code_bases_are_told_apart():
    mae = MaskedAutoencoder(
        **{name: SIZES[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    )
    for model, dialects in ((mae, ("plsc_mae", "facebook", "plsc")), (tiny(), ("plsc_mae", "cae", "plsc_cae"))):
        assert [detect(weights.export(model, dialect)) for dialect in dialects] == list(dialects)


BEIT = {"k_bias": False, "num_classes": 3}
CLASSIFIERS = {
    "facebook": {"num_classes": 3},
    "plsc": {"num_classes": 3, "probe": "standard"},
    "beit": BEIT,
    "plsc_beit": {**BEIT, "probe": "raw"},
    "plsc_mae": {**BEIT, "probe": "standard"},
    "plsc_mae, attentive": {**BEIT, "probe": "attentive"},
    "beit, priv": {**BEIT, "fc_norm": True, "global_pool": False, "positions": "row first"},
    "beit, mp": {**BEIT, "class_token": False, "positions": "sinusoid"},
}


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_classifiers_are_told_apart(name):
    dialect = name.partition(",")[0]
    sizes = {key: SIZES[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    ours, other = (ImageClassifier(**sizes, **CLASSIFIERS[name]) for _ in range(2))
    exported = weights.export(ours, dialect)
    assert len(exported) == len(ours.state_dict())
    assert detect(exported) == dialect
    report = weights.load(other, exported)
    assert (report.missing, report.unexpected) == ([], [])
    for key, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key].numpy(), tensor.numpy(), err_msg=key)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("mae/checkpoints/priv_pretrain_cls", "mae_priv"),
        ("mae/checkpoints/priv_pretrain_gap", "mae_priv"),
        ("mae/checkpoints/mp_pretrain", "mae_pytorch"),
        ("mae/checkpoints/priv_finetune_ema", "beit"),
        ("mae/checkpoints/fb_finetuned_gap", "facebook"),
        ("mae/checkpoints/fb_released_encoder", "facebook"),
        ("mae/checkpoints/fb_training_legacy_nonzip", "facebook"),
        ("cae/checkpoints/cae_pretrain_legacy_modelonly", "cae"),
        ("cae/checkpoints/cae_finetune_checkpoint-3", "beit"),
        ("cae/checkpoints/cae_linear_checkpoint-3", "beit"),
        ("cae/checkpoints/cae_attentive_checkpoint-3", "beit"),
    ],
)
def test_the_dialect_of_recorded_files(root, name, dialect):
    """Exactly one dialect recognizes each file; timm's names equal facebookresearch/mae's."""
    tensors = weights.read(root / f"tests/golden/{name}.pth").model
    takers = [rules.name for rules in DIALECTS.values() if rules.recognizes(tensors) and rules.name != "timm"]
    assert takers == [dialect]


def test_the_running_statistics_of_plsc():
    """PLSC uses Paddle's batch norm and its tensor names."""
    rename = DIALECTS["plsc"].foreign_name
    assert rename("head.0.running_mean") == "head.0._mean"
    assert DIALECTS["plsc_beit"].foreign_name("fc_norm.running_var") == "fc_norm._variance"
    assert DIALECTS["facebook"].foreign_name("head.0.running_var") == "head.0.running_var"


def test_sizes_of_encoders_are_read_off():
    model = ImageClassifier(
        **{"img_size": 24, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 6, "mlp_ratio": 2.0},
        **{"k_bias": False, "relative_positions": "shared", "positions": "none", "layer_scale": 0.1, "in_chans": 1},
    )
    for dialect in ("beit", "plsc_beit", "plsc_mae"):
        sizes = infer_encoder(weights.export(model, dialect), DIALECTS[dialect], "FILE")
        assert sizes == {
            **{"img_size": 24, "patch_size": 4, "in_chans": 1, "embed_dim": 48, "depth": 3, "num_heads": 6},
            **{"mlp_ratio": 2.0, "class_token": True, "layer_scale": 0.1, "k_bias": False},
            **{"relative_positions": "shared", "final_norm": False, "qk_norm": False, "register_tokens": 0},
            "prefix_positions": None,
        }
    exported = weights.export(model, "beit")
    del exported["rel_pos_bias.relative_position_bias_table"]
    sizes = infer_encoder(exported, DIALECTS["beit"], "FILE")
    assert (sizes["img_size"], sizes["num_heads"], sizes["relative_positions"]) == (None, None, "none")
    for patches, side in ((7, None), (25, 20)):
        exported["pos_embed"] = np.zeros((1, 1 + patches, 48))
        assert infer_encoder(exported, DIALECTS["beit"], "FILE")["img_size"] == side
    del exported["patch_embed.proj.weight"]
    with pytest.raises(CheckpointError, match=r"^FILE .*no encoder.*patch_embed"):
        infer_encoder(exported, DIALECTS["beit"], "FILE")


def test_another_size_is_told():
    exported = weights.export(tiny(), "cae")
    with pytest.raises(
        CheckpointError, match=r"'mask_token' has shape \[1, 1, 16\] in our layout, but .* \[1, 1, 20\]"
    ):
        weights.load(tiny(decoder_embed_dim=20), exported)
    with pytest.raises(ConfigError, match="unknown dialect 'vim'"):
        weights.load(tiny(), exported, dialect="vim")
    assert weights.load(tiny(), exported, dialect="facebook").missing
