"""Every command that reads weights: the network is chosen by the same flags, and NaN is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from plsc_mae import weights
from plsc_mae.cli import COMMANDS, main
from plsc_mae.config.schema import options
from plsc_mae.train.checkpoint import file as checkpoint_file

# Options with the path of a weight file of any code base.
SOURCES = {"model_path", "finetune", "checkpoint"}
# Commands on a file F with images D, writing to O.
PRETRAINED = {
    "knn": "knn --model_path F --data_path D --nb_knn 3 --num_workers 0",
    "compare": "compare --model_path F --data_path D --nb_knn 3 --num_workers 0",
    "extract": "extract --model_path F --data_path D --save_path O/f.npz --num_workers 0",
    "explain": "explain --model_path F --img_path D/val --save_path O --max_images 1",
    "reconstruct": "reconstruct --model_path F --img_path D/val --save_path O --max_images 1",
    "convert": "weights convert F O/new.npz --dialect facebook",
    "parity": "parity --checkpoint F --steps 1",
    "finetune": "finetune --model vit_base_patch16 --finetune F S --data_path D --output_dir O",
    "linprobe": "linprobe --model vit_base_patch16 --finetune F S --data_path D --output_dir O",
}
CLASSIFIED = {
    "predict": "predict --model_path F --img_path D/val --save_path O/p.json",
    "explain": "explain --model_path F --img_path D/val --save_path O --category_index 0",
    "eval": "finetune --eval --model vit_base_patch16 --resume F S --data_path D --output_dir O",
    "knn": "knn --model_path F --data_path D --nb_knn 3 --num_workers 0",
}
SMALL = "--input_size 32 --patch_size 8 --embed_dim 32 --depth D --num_heads 2 --batch_size 10 --num_workers 0"


@pytest.fixture
def run(images, tmp_path, capsys):
    """Run a command of the tables above on a file; return the exit code and the output of both streams."""

    def call(line: str, file, flags: str = "", depth: int = 1) -> tuple[int, str]:
        words = {"F": str(file), "D": str(images), "S": SMALL.replace("depth D", f"depth {depth}")}
        text = " ".join(words.get(word, word.replace("D/", f"{images}/", 1)) for word in line.split())
        capsys.readouterr()
        code = main([*text.replace(" O", f" {tmp_path}").split(), *flags.split()])
        return code, "".join(capsys.readouterr())

    return call


def arrays_of(file) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in weights.read(file).model.items()}


def write(path, file, model: dict) -> str:
    """Write a checkpoint of plsc_mae again with another network."""
    content = {"model": model, **weights.read(file).meta}
    path.write_bytes(pickle.dumps(content, 4))
    return str(path)


def test_every_command_that_reads_weights_has_both_flags():
    for name, command in COMMANDS.items():
        for config in command.configs.values():
            names = {option.name for option in options(config)}
            if names & SOURCES or name in ("weights inspect", "weights convert", "weights diff"):
                assert {"model_key", "model_prefix"} <= names, name


@pytest.mark.parametrize("name", PRETRAINED)
def test_no_command_uses_nan_of_a_pretrained_network(name, run, trained, tmp_path):
    file = trained() / "checkpoint-1.pd"
    arrays = arrays_of(file)
    arrays["encoder.blocks.0.mlp.fc2.weight"][0, 0] = np.nan
    code, output = run(PRETRAINED[name], write(tmp_path / "nan.pd", file, arrays))
    assert code == 2
    assert "NaN" in output
    assert "blocks.0.mlp.fc2.weight" in output
    assert "earlier checkpoint" in output
    assert not list(tmp_path.glob("*.np*"))
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("name", CLASSIFIED)
def test_no_command_uses_infinity_of_a_classifier(name, run, classifier, tmp_path):
    arrays = arrays_of(classifier)
    arrays["encoder.norm.bias" if "encoder.norm.bias" in arrays else "encoder.blocks.1.norm1.bias"][0] = np.inf
    code, output = run(CLASSIFIED[name], write(tmp_path / "inf.pd", classifier, arrays), depth=2)
    assert code == 2
    assert "norm" in output
    assert "earlier checkpoint" in output
    assert not (tmp_path / "p.json").exists()


def test_other_weights_of_the_file_are_the_remedy(run, classifier, tmp_path):
    stored = weights.read(classifier)
    bad = arrays_of(classifier)
    bad["head.bias"][0] = np.nan
    average = {name.partition("/")[2]: x for name, x in stored.tensors.items() if name.startswith("model_ema/")}
    path = tmp_path / "nan.pd"
    path.write_bytes(pickle.dumps({"model": bad, "model_ema": average, **stored.meta}, 4))
    code, output = run(CLASSIFIED["predict"], path)
    assert code == 2
    assert "--model_key model_ema" in output
    assert run(CLASSIFIED["predict"], path, "--model_key model_ema")[0] == 0


def test_results_that_overflow_are_refused(run, classifier, tmp_path):
    """Finite weights can give NaN too; no JSON contains it."""
    arrays = arrays_of(classifier)
    for name in ("head.weight", "encoder.blocks.1.mlp.fc2.weight"):
        arrays[name] = np.full_like(arrays[name], 3e38)
    file = write(tmp_path / "huge.pd", classifier, arrays)
    for name in ("predict", "eval", "knn"):
        code, output = run(CLASSIFIED[name], file, depth=2)
        assert code == 2, name
        assert "too large for float32" in output
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_run_does_not_resume_from_nan(part, trained, images, tmp_path, tiny, capsys):
    stored = weights.read(trained() / "checkpoint-1.pd")
    state = dict(stored.meta)
    for path, value in stored.tensors.items():
        *keys, name = path.split("/")
        table = state
        for key in keys:
            table = table.setdefault(key, {})
        table[name] = np.array(value)
    damaged = state[part]["encoder.blocks.0.mlp.fc2.weight"]
    (damaged if part == "model" else next(iter(damaged.values()))).flat[0] = np.nan
    checkpoint_file.save(tmp_path / "checkpoint-1.pd", state)
    line = f"--epochs 3 --warmup_epochs 1 --num_workers 0 --data_path {images} --output_dir {tmp_path}"
    assert main(["pretrain", *tiny, *line.split(), "--resume", str(tmp_path / "checkpoint-1.pd")]) == 2
    message = capsys.readouterr().err
    assert f"{part}/encoder.blocks.0.mlp.fc2.weight" in message
    assert "--resume" in message


def test_wrapped_files_give_the_same_features(run, trained, tmp_path):
    """A teacher in a table of its own, inside two wrappers, has the features of the file it was taken from."""
    file = trained() / "checkpoint-1.pd"
    facebook = tmp_path / "facebook.npz"
    assert run(f"weights convert F {facebook} --dialect facebook", file)[0] == 0
    arrays = dict(np.load(facebook))
    wrapped = {f"module._orig_mod.backbone.{name}": value for name, value in arrays.items()}
    path = tmp_path / "wrapped.pkl"
    path.write_bytes(pickle.dumps({"teacher": wrapped, "epoch": 3}, 4))
    expected = run(PRETRAINED["knn"], facebook, "--num_heads 2")[1].splitlines()[-1]
    code, output = run(PRETRAINED["knn"], path, "--num_heads 2")
    assert code == 0
    assert output.splitlines()[-1] == expected
    assert "'teacher'" in output
    assert "'backbone.'" in output
    path.write_bytes(pickle.dumps({"teacher": wrapped, "student": arrays}, 4))
    for name in ("knn", "extract", "explain", "reconstruct", "convert", "finetune"):
        heads = "" if name == "finetune" else "--num_heads 2" + " --decoder_num_heads 2" * (name == "reconstruct")
        code, output = run(PRETRAINED[name], path, heads)
        assert code == 2
        assert "teacher, student" in output
        assert "--model_key" in output
        if name != "finetune":
            assert run(PRETRAINED[name], path, f"{heads} --model_key student")[0] == 0


def test_inspection_of_wrapped_files(run, trained, tmp_path, capsys):
    arrays = arrays_of(trained() / "checkpoint-1.pd")
    path = tmp_path / "wrapped.pkl"
    path.write_bytes(pickle.dumps({"teacher": arrays, "student": arrays}, 4))
    assert "several networks" in run("weights inspect F", path)[1]
    code, output = run("weights inspect F --json", path, "--model_key student")
    found = json.loads(output)
    assert (code, found["kind"], found["beside"]) == (0, "mae", {"teacher": len(arrays)})
    assert all(line.endswith(" --model_key student") for line in found["uses"].values())
    assert run("weights diff F F", path)[0] == 2
    assert run("weights diff F F --model_key student teacher", path)[0] == 0
    arrays["encoder.blocks.0.norm1.bias"] = arrays["encoder.blocks.0.norm1.bias"] * np.nan
    path.write_bytes(pickle.dumps(arrays, 4))
    found = json.loads(run("weights inspect F --json", path)[1])
    assert found["not_finite"] == {"encoder.blocks.0.norm1.bias": 32}
    assert not found["uses"]
    code, output = run(f"weights diff F {trained() / 'checkpoint-1.pd'}", path)
    assert code == 1
    assert "encoder.blocks.0.norm1.bias: inf" in output


def test_the_folder_that_convert_writes_is_read(run, trained, tmp_path):
    """Heads, image size and eps come from its config.json."""
    file, folder = trained() / "checkpoint-1.pd", tmp_path / "hf"
    assert run(f"weights convert F {folder} --dialect huggingface", file)[0] == 0
    for name in ("knn", "reconstruct", "convert"):
        code, output = run(PRETRAINED[name], folder)
        assert code == 0, output
    assert run(PRETRAINED["knn"], folder)[1].splitlines()[-1] == run(PRETRAINED["knn"], file)[1].splitlines()[-1]
    output = run("weights inspect F", folder)[1]
    assert "Hugging Face folder" in output
    assert "heads 2" in output
    assert "--num_heads N" not in output


@pytest.mark.parametrize(
    "line",
    [
        "knn --model_path A --data_path D",
        "finetune --model vit_base_patch16 --finetune A S --data_path D --output_dir O",
        "finetune --model vit_base_patch16 --eval --resume A S --data_path D --output_dir O",
        "pretrain --model mae_vit_tiny_patch16 --resume A S --data_path D --output_dir O",
        "weights inspect A",
        "weights fetch A",
    ],
)
@pytest.mark.parametrize("address", ["facebook/vit-mae-base", "hf://facebook/vit-mae-base"])
def test_an_address_is_answered_with_fetch(line, address, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = run(line.replace("A", address), "none")
    assert code == 2
    assert "`plsc-mae weights fetch hf_vit_mae_base`" in output
