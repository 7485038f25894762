"""`plsc-mae weights`: what is told of files of every kind, how two are compared, and how published ones are fetched."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import plsc_mae
from plsc_mae import weights
from plsc_mae.cli import COMMANDS, main
from plsc_mae.commands import usage_lines
from plsc_mae.commands.classify import build_classifier
from plsc_mae.config.resolve import parse
from plsc_mae.loading.classifier_weights import load_into_classifier
from plsc_mae.weights.fetch import MIRROR
from plsc_mae.weights.manifest import read_manifest

pytestmark = [pytest.mark.compat, pytest.mark.once]

GOLDEN = Path(__file__).parents[1] / "golden"
FACEBOOK = GOLDEN / "mae/checkpoints/fb_released_full.pth"
LOOKING = {"knn", "explain", "extract", "segprobe", "export"}
TRAINING = {"finetune", "linprobe"}


@pytest.fixture
def run(capfd):
    """Run a command line; gives the exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["weights", *map(str, words)])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def inspected(run):
    """What `weights inspect --json` tells of a file."""

    def inspected(path: Path, *flags: str) -> dict:
        code, out, err = run("inspect", path, "--json", *flags)
        assert (code, err) == (0, "")
        return json.loads(out)

    return inspected


def parsed(line: str):
    """The options of a command line as `weights inspect` prints it, heads filled in."""
    program, name, *words = line.replace(" N", " 2").split()
    assert program == "plsc-mae"
    return parse(words, COMMANDS[name].configs, prog=name)


# --------------------------------------------------------------------------------------------------- inspect

KINDS = {
    # file: kind, what is in the words, what it is good for, what it is not good for
    "mae/fb_released_encoder.pth": ("encoder", "without a decoder", {*TRAINING, *LOOKING}, {"reconstruct"}),
    "mae/fb_released_full.pth": ("mae", "encoder and decoder", {"reconstruct", *TRAINING, *LOOKING}, set()),
    "mae/fb_training.pth": ("mae", "encoder and decoder", {"reconstruct", *TRAINING, *LOOKING}, {"resume"}),
    "mae/fb_training_legacy_nonzip.pth": ("mae", "decoder", {"reconstruct", *TRAINING, *LOOKING}, {"resume"}),
    "mae/fb_full.safetensors": ("mae", "encoder and decoder", {"reconstruct", *TRAINING, *LOOKING}, set()),
    "mae/fb_finetuned_gap.pth": ("classifier", "classifier of 10 classes", {"predict", *LOOKING}, {"reconstruct"}),
    "mae/hf_vitmae_model.safetensors": ("mae", "decoder", {"reconstruct", *TRAINING, *LOOKING}, set()),
    "mae/hf_vitmae_v5names.safetensors": ("mae", "decoder", {"reconstruct", *TRAINING, *LOOKING}, set()),
    "mae/priv_pretrain_gap.pth": ("mae", "decoder", {"reconstruct", *TRAINING, *LOOKING}, {"resume"}),
    "mae/priv_pretrain_cls.pth": ("mae", "decoder", {"reconstruct", *TRAINING, *LOOKING}, {"resume"}),
    "mae/priv_finetune_ema.pth": (
        "classifier",
        "classifier of 10 classes",
        {"predict", "predict by model_ema", *LOOKING},
        {"reconstruct", "resume"},
    ),
    "mae/mp_pretrain.pth": ("mae", "decoder", {"reconstruct", "finetune", *LOOKING}, {"resume"}),
    "mae/dtypes.pth": ("unknown", "its tensors are called f32, f16, bf16, ...", set(), set()),
    "cae/cae_pretrain_checkpoint-1.pth": (
        "cae",
        "encoder, regressor and decoder",
        {"reconstruct", *TRAINING, *LOOKING},
        {"resume"},
    ),
    "cae/cae_pretrain_legacy_modelonly.pth": ("cae", "regressor", {"reconstruct", *TRAINING, *LOOKING}, set()),
    "cae/cae_finetune_checkpoint-3.pth": (
        "classifier",
        "of 7 classes",
        {"predict", *LOOKING},
        {"reconstruct", "resume"},
    ),
    "cae/cae_linear_checkpoint-3.pth": ("classifier", "linear probe", {"predict", *LOOKING}, {"reconstruct", "resume"}),
    "cae/cae_attentive_checkpoint-3.pth": (
        "classifier",
        "attentive probe",
        {"predict", *LOOKING},
        {"reconstruct", "resume"},
    ),
    "cae/dalle_module_zip_encoder.pkl": ("tokenizer", "encoder of a DALL-E", {"pretrain"}, set()),
    "cae/dalle_statedict_decoder.pth": ("tokenizer", "decoder of a DALL-E", set(), {"pretrain"}),
}


def golden_path(name: str) -> Path:
    family, _, file = name.partition("/")
    return GOLDEN / family / "checkpoints" / file


@pytest.mark.parametrize("name", KINDS)
def test_what_a_file_is_and_is_good_for(inspected, name):
    kind, words, uses, misfits = KINDS[name]
    found = inspected(golden_path(name))
    assert found["kind"] == kind
    assert words in found["holds"]
    assert set(found["uses"]) == uses
    assert set(found["misfits"]) == misfits
    assert found["tensors"] == sum(found["dtypes"].values()) > 0
    for line in found["uses"].values():
        parsed(line)
    assert not any(str(GOLDEN) in it for it in found["unknown"]), "an error in the place of a description"


@pytest.mark.parametrize("name", [name for name, (_, _, uses, _) in KINDS.items() if "finetune" in uses])
def test_the_fine_tuning_that_is_proposed_takes_the_file(inspected, name):
    line = inspected(golden_path(name))["uses"]["finetune"]
    config = parsed(line)
    model, stored = build_classifier(config, 3), weights.read_network(config.finetune)
    report = load_into_classifier(model, stored, norm_into_fc_norm=config.method == "cae")
    assert len(report.matched) > 25


def test_every_golden_file_is_described_or_refused_in_one_sentence(run):
    files = sorted(path for path in GOLDEN.glob("*/checkpoints/*") if path.is_file())
    assert len(files) > 60
    refused = set()
    for path in files:
        code, out, err = run("inspect", path)
        if code == 2:
            assert err.startswith("plsc-mae: error: ")
            assert err.count("\n") == 1
            refused.add(path.name)
        else:
            assert (code, err) == (0, ""), path.name
            assert out.startswith(f"{path}: "), path.name
    damaged = re.compile(r"bad_|truncated|.*\.json$")
    assert refused == {path.name for path in files if damaged.match(path.name)}


def test_sizes_and_what_a_checkpoint_stores(inspected):
    found = inspected(golden_path("mae/fb_training.pth"))
    encoder = found["sizes"]["encoder"]
    assert {key: encoder[key] for key in ("img_size", "grid", "patch_size", "embed_dim", "depth", "num_heads")} == {
        "img_size": [16, 16],
        "grid": [4, 4],
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 2,
        "num_heads": None,
    }
    assert found["sizes"]["decoder"] == {"embed_dim": 8, "depth": 1, "num_heads": None}
    assert found["target"] == "pixels of hidden patches, as they are"
    assert (found["format"], found["epoch"]) == ("torch, zip", 20)
    assert found["beside"] == {"optimizer": 144, "scaler": 0}
    assert found["options"]["mask_ratio"] == 0.75
    assert len(found["unknown"]) == 2  # heads of encoder and decoder


def test_what_is_not_told_is_said_and_heads_can_be_given(inspected):
    found = inspected(FACEBOOK)
    assert found["target"] == "pixels of hidden patches"
    assert any("they were not" in it and it.endswith("--norm_pix_loss") for it in found["unknown"])
    told = inspected(FACEBOOK, "--num_heads", "2", "--decoder_num_heads", "4")
    assert told["sizes"]["encoder"]["num_heads"] == 2
    assert told["sizes"]["decoder"]["num_heads"] == 4
    assert not any("heads" in it for it in told["unknown"])
    assert told["uses"]["reconstruct"].endswith("--num_heads 2 --decoder_num_heads 4")
    assert "--num_heads 2 --input_size 16" in told["uses"]["finetune"]


@pytest.mark.parametrize(
    "name", ["mae/priv_pretrain_gap.pth", "mae/mp_pretrain.pth", "cae/cae_pretrain_checkpoint-1.pth"]
)
def test_given_heads_replace_those_that_widths_suggest(inspected, name):
    """MAE-priv and MAE-pytorch have heads of width 64, unless a file was trained with others."""
    found = inspected(golden_path(name), "--num_heads", "2", "--decoder_num_heads", "2")
    assert found["sizes"]["encoder"]["num_heads"] == found["sizes"]["decoder"]["num_heads"] == 2
    assert "--num_heads 2 --decoder_num_heads 2" in found["uses"]["reconstruct"]
    assert found["uses"]["knn"].endswith("--num_heads 2")
    assert not any("heads" in it for it in found["unknown"])


def test_targets_of_others(inspected):
    assert inspected(golden_path("mae/mp_pretrain.pth"))["target"].endswith("normalized patch by patch")
    found = inspected(golden_path("cae/cae_pretrain_checkpoint-1.pth"))
    assert found["target"] == "tokens of hidden patches, one of 16"
    assert found["sizes"]["decoder"]["regressor_depth"] == 1
    assert inspected(golden_path("cae/cae_finetune_checkpoint-3.pth"))["sizes"]["head"] == {
        "classes": 7,
        "probe": "none",
        "pooled": "the mean of the patch tokens",
    }


def test_rows_that_cannot_be_ordered_are_told(inspected, run, exported):
    """LiBai's rows are grouped by head, and nothing tells the heads of this decoder."""
    path = exported(tiny_mae(), "libai")
    found = inspected(path)
    assert found["dialect"] == "libai"
    assert "--num_heads N --decoder_num_heads N" in found["uses"]["reconstruct"]
    code, _, err = run("diff", path, FACEBOOK)
    assert code == 2
    assert "LiBai" in err


def test_own_checkpoints_tell_everything(inspected, trained):
    path = trained("--norm_pix_loss") / "checkpoint-1.pd"
    found = inspected(path)
    assert (found["dialect"], found["kind"], found["phase"], found["epoch"]) == ("plsc_mae", "mae", "pretrain", 1)
    assert found["format"] == "checkpoint of plsc_mae, with checksum"
    assert found["unknown"] == []
    assert found["sizes"]["encoder"]["num_heads"] == 2
    assert found["sizes"]["decoder"] == {"embed_dim": 16, "depth": 1, "num_heads": 2}
    assert found["target"] == "pixels of hidden patches, normalized patch by patch"
    assert found["beside"]["optimizer"] > 0
    assert found["uses"]["reconstruct"] == f"plsc-mae reconstruct --model_path {path} --img_path DIR"
    resumed = parsed(found["uses"]["resume"])
    assert (resumed.resume, resumed.embed_dim, resumed.norm_pix_loss) == (str(path), 32, True)


def test_own_classifiers(inspected, classifier):
    found = inspected(classifier)
    assert (found["holds"], found["phase"]) == ("classifier of 10 classes", "finetune")
    assert set(found["uses"]) == {"predict", "predict by model_ema", "resume", *LOOKING}
    assert parsed(found["uses"]["resume"]).resume == str(classifier)


def test_text_is_for_people(run):
    code, out, _ = run("inspect", FACEBOOK)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{FACEBOOK}: torch, zip, 0.0 MB, dialect facebook"
    assert "  holds       masked autoencoder: encoder and decoder" in lines
    assert any(line.split(maxsplit=1)[0] == "reconstruct" and "plsc-mae reconstruct" in line for line in lines)
    assert all(len(line) <= 120 for line in lines if "plsc-mae" not in line and str(GOLDEN) not in line)


def test_every_tensor_can_be_listed(run, inspected, tmp_path):
    path = tmp_path / "w.safetensors"
    x = np.array([[1.0, np.nan], [np.inf, 3.0]], np.float32)
    save_file({"x": x, "empty": np.zeros((0, 2)), "scalar": np.asarray(7), "z": np.array([1 + 2j], np.complex64)}, path)
    found = inspected(path, "--tensors")
    table = {line.pop("name"): line for line in found["table"]}
    assert table["x"] == {"shape": [2, 2], "dtype": "float32", "mean": 2.0, "std": 1.0, "nan": 1}
    assert table["empty"] == {"shape": [0, 2], "dtype": "float64", "mean": None, "std": None, "nan": 0}
    assert table["scalar"]["mean"] == 7.0
    assert table["z"]["mean"] is None
    assert found["not_finite"] == {"x": 2}
    _, out, _ = run("inspect", path, "--tensors")
    assert re.search(r"^x +2 x 2 +float32 +2 +1 +1$", out, re.MULTILINE)
    assert re.search(r"^scalar +scalar +int64 +7 +0 +0$", out, re.MULTILINE)
    assert "not finite  2 values of x" in out


PUBLISHED = {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16, "class_token": True, "grid": (14, 14)}
PUBLISHED["layer_scale"] = True


@pytest.mark.parametrize(
    ("method", "changes", "flags"),
    [
        ("mae", {}, "--model vit_large_patch16"),
        ("mae", {"patch_size": 14, "embed_dim": 1280, "depth": 32, "grid": (16, 16)}, "--model vit_huge_patch14"),
        ("mae", {"grid": (28, 28)}, "--model vit_large_patch16 --input_size 448"),
        ("mae", {"grid": (14, 28)}, "--model vit_large_patch16 --input_size 224 448"),
        ("cae", {}, "--model cae_large_patch16_224"),
        ("cae", {"layer_scale": False}, "--model cae_large_patch16_224 --layer_scale_init_value 0"),
        ("mae_pytorch", {"class_token": False}, "--model vit_large_patch16_224"),
        ("mae_priv", {}, "--method mae_priv --model vit_large_patch16_224 --use_cls_token"),
        ("mae_priv", {"class_token": False}, "--method mae_priv --model vit_large_patch16_224 --global_pool"),
        ("mae", {"depth": 3, "num_heads": None}, "--model vit_large_patch16 --depth 3 --num_heads N"),
        (
            "mae",  # demo/mae
            {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "grid": (8, 8)},
            "--model vit_tiny_patch16 --patch_size 8 --embed_dim 96 --depth 4 --input_size 64",
        ),
    ],
)
def test_the_nearest_classifier_is_named(method, changes, flags):
    lines = usage_lines.training("w.pth", method, PUBLISHED | changes)
    assert lines["finetune"] == f"plsc-mae finetune {flags} --finetune w.pth --data_path DIR"
    assert ("linprobe" in lines) == (method != "mae_pytorch")


def test_inspect_needs_a_file(run):
    assert run("inspect")[2] == "plsc-mae: error: name the file: plsc-mae weights inspect FILE\n"


# --------------------------------------------------------------------------------------------------- diff


def tiny_mae() -> object:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
    return plsc_mae.create_model("mae_vit_tiny_patch16", **sizes, **decoder)


def tiny_cae() -> object:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 4}
    decoder = {"decoder_embed_dim": 24, "regressor_depth": 1, "num_decoder_self_attention": 1, "decoder_num_heads": 12}
    return plsc_mae.create_model("cae_tiny_patch16_224_8k_vocab", **sizes, **decoder, decoder_num_classes=6)


def tiny_classifier() -> object:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return plsc_mae.create_model("vit_base_patch16", **sizes, num_classes=3)


@pytest.fixture
def exported(tmp_path):
    """Write a network in a dialect, with 0.5 added to one of its tensors if asked for."""

    def write(model, dialect: str, changed: str = "") -> Path:
        arrays = weights.export(model, dialect)
        if changed:
            arrays[changed] = arrays[changed] + np.float32(0.5)
        path = tmp_path / f"{dialect}{changed}.safetensors"
        save_file(arrays, path)
        return path

    return write


@pytest.mark.parametrize(
    ("make", "dialects", "words"),
    [
        (tiny_mae, ("facebook", "plsc"), "autoencoders"),
        (tiny_mae, ("plsc_mae", "facebook"), "autoencoders"),
        (tiny_mae, ("facebook", "huggingface"), "autoencoders"),
        (tiny_mae, ("plsc", "mmpretrain"), "autoencoders"),
        (tiny_cae, ("cae", "plsc_cae"), "autoencoders"),
        (tiny_classifier, ("facebook", "plsc"), "classifiers"),
    ],
)
def test_one_network_in_two_dialects_is_the_same(run, exported, make, dialects, words):
    model = make()
    a, b = (exported(model, dialect) for dialect in dialects)
    code, out, err = run("diff", a, b)
    assert (code, err) == (0, "")
    assert f"tensors of the {words} in the names of plsc_mae ({' and '.join(dialects)})" in out
    assert out.endswith("the same\n")
    count = len(model.state_dict())
    assert f"{count} of {count} with one name and shape are bit-identical" in out


def test_a_change_is_found_in_our_names(run, exported):
    model = tiny_mae()
    a, b = exported(model, "facebook"), exported(model, "plsc", "blocks.0.attn.qkv.weight")
    code, out, _ = run("diff", a, b, "--json")
    found = json.loads(out)
    assert (code, found["same"]) == (1, False)
    (tensor,) = found["compared"]
    assert tensor["name"] == "encoder.blocks.0.attn.qkv.weight"
    assert tensor["max_abs"] == pytest.approx(0.5, abs=1e-6)  # a float32 sum
    assert tensor["differing"] == tensor["size"] == 8 * 24
    assert len(found["identical"]) == len(model.state_dict()) - 1
    assert run("diff", a, b, "--tolerance", "0.6")[0] == 0


def test_other_kinds_are_compared_by_their_encoders(run, exported):
    a, b = exported(tiny_mae(), "facebook"), exported(tiny_classifier(), "plsc")
    code, out, _ = run("diff", a, b)
    assert code == 1
    assert "tensors of the encoders in the names of plsc_mae" in out
    assert "blocks.0.mlp.fc1.weight" in out
    assert "decoder" not in out


def test_one_dialect_is_compared_as_stored(run, tmp_path):
    a = golden_path("mae/fb_released_full.pth")
    b = golden_path("mae/fb_full.safetensors")
    code, out, err = run("diff", a, b)
    assert (code, err) == (1, "")
    assert "as stored (facebook): 50 of 50 with one name and shape are bit-identical" in out
    assert f"5 only in {b}\n  extra.bf16\n" in out
    assert run("diff", a, a)[0] == 0


def test_everything_takes_optimizers_in(run):
    a, b = golden_path("mae/fb_training.pth"), golden_path("mae/fb_training_legacy_nonzip.pth")
    assert run("diff", a, b)[0] == 0
    code, out, _ = run("diff", a, b, "--everything", "--max_lines", "1")
    assert code == 1  # the number of steps is a tensor in one and a number in the other
    assert re.search(r"^48 only in .*\n  optimizer/state/0/step\n  and 47 more$", out, re.MULTILINE)


def test_unknown_tensors_are_compared_too(run, tmp_path):
    for name, value in (("a", 1.0), ("b", np.nan)):
        save_file({"x": np.array([0.0, value], np.float32)}, tmp_path / name)
    code, out, _ = run("diff", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 1
    assert json.loads(out)["compared"][0]["max_abs"] == "inf"


def test_diff_needs_two_files_that_can_be_read(run):
    assert "name two files" in run("diff", FACEBOOK)[2]
    code, _, err = run("diff", FACEBOOK, golden_path("mae/bad_html.pth"))
    assert code == 2
    assert "web page" in err


# --------------------------------------------------------------------------------------------------- list and fetch


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that is served as the mirror of everything."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{server.server_address[1]}/copies")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder / "copies"
    server.shutdown()
    server.server_close()
    thread.join()


def serve(mirror: Path, address: str) -> None:
    path = mirror / address
    path.parent.mkdir(parents=True)
    shutil.copy(FACEBOOK, path)


def test_a_published_file_is_fetched_from_a_mirror_once(run, mirror, tmp_path):
    serve(mirror, "mae/visualize/mae_visualize_vit_large.pth")
    words = ("fetch", "mae_visualize_vit_large", "--output_dir", tmp_path / "w")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    path, sha256 = tmp_path / "w/mae_visualize_vit_large.pth", hashlib.sha256(FACEBOOK.read_bytes()).hexdigest()
    assert path.read_bytes() == FACEBOOK.read_bytes()
    assert "licence CC BY-NC 4.0, https://github.com/facebookresearch/mae" in out
    assert f"{path} " in out
    assert f"sha256:{sha256}" in out
    shutil.rmtree(mirror)
    code, out, _ = run(*words)
    assert code == 0
    assert f"{path} is already here" in out


def test_digits_of_the_manifest_are_checked(run, mirror, tmp_path):
    serve(mirror, "mae/pretrain/mae_pretrain_vit_base.pth")
    code, _, err = run("fetch", "mae_pretrain_vit_base", "--output_dir", tmp_path / "w")
    assert code == 2
    assert "expected md5:8cad7c" in err
    assert err.count("\n") == 1
    assert list((tmp_path / "w").iterdir()) == []
    own = f"md5:{hashlib.md5(FACEBOOK.read_bytes()).hexdigest()[:8]}"
    code, out, _ = run("fetch", "mae_pretrain_vit_base", "--output_dir", tmp_path / "w", "--checksum", own)
    assert code == 0
    assert f"known digits of the checksum verified, {own}" in out


def test_an_address_is_fetched(run, mirror, tmp_path, monkeypatch):
    serve(mirror, "other/w.pth")
    code, out, _ = run("fetch", "https://example.org/other/w.pth", "--output_dir", tmp_path)
    assert code == 0
    assert f"{tmp_path}/w.pth has arrived" in out
    code, _, err = run("fetch", "https://example.org/none.pth", "--output_dir", tmp_path)
    assert code == 2
    assert "the server answers 404 File not found" in err


def test_what_cannot_be_fetched_says_where_it_is(run):
    code, _, err = run("fetch", "mae_priv_vit_base_gap_400e")
    assert code == 2
    assert "Google Drive requires a click" in err
    assert "save it as weights/mae_priv_vit_base_gap_400e.pth" in err
    assert "did you mean 'dalle_encoder'" in run("fetch", "dalle_encodr")[2]
    assert "name the file" in run("fetch")[2]
    assert "expected md5: or sha256:" in run("fetch", "dalle_encoder", "--checksum", "x")[2]


def test_the_list_helps_to_choose(run, tmp_path):
    (tmp_path / "mae_pretrain_vit_large.pth").touch()
    (tmp_path / "mae_pretrain_vit_huge.pth.partial").touch()
    code, out, _ = run("list", "mae_pretrain_*", "--output_dir", tmp_path)
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split()[:5] == ["name", "here", "size", "dialect", "licence"]
    assert [row.split()[:2] for row in rows] == [
        ["mae_pretrain_vit_base", "no"],
        ["mae_pretrain_vit_large", "yes"],
        ["mae_pretrain_vit_huge", "partly"],
    ]
    assert all("CC BY-NC 4.0" in row and "fine-tuned" in row for row in rows)
    code, out, _ = run("list", "mae_pytorch_vit_base_400e")
    assert "cannot be fetched by a program: no download address is documented" in out


def test_the_whole_list_is_machine_readable(run):
    listed = json.loads(run("list", "--json")[1])
    entries = read_manifest()
    assert [values["name"] for values in listed] == list(entries)
    base = listed[0]
    assert (base["checksum"], base["here"]) == ("md5:8cad7c", "no")
    assert base["path"] == "weights/mae_pretrain_vit_base.pth"


def test_the_dialects_of_the_manifest_exist():
    """They are the names that reading such a file gives."""
    from plsc_mae.weights.dialects import DIALECTS

    assert {entry.dialect for entry in read_manifest().values()} <= {*DIALECTS, "dall_e"}


def test_saved_exports_are_what_they_say(inspected, exported):
    """A file without options is described by its tensors, in the dialect of this suite too."""
    path = exported(tiny_mae(), "plsc_mae")
    assert set(load_file(path)) > {"encoder.cls_token", "decoder.mask_token"}
    found = inspected(path)
    assert (found["kind"], found["dialect"]) == ("mae", "plsc_mae")
    assert found["sizes"]["decoder"]["embed_dim"] == 8
