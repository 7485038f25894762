"""What the documents tell to type works: commands parse, links lead somewhere, the library example runs."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from plsc_mae.cli import COMMANDS
from plsc_mae.config.launch import split_launch
from plsc_mae.config.recipes import no_recipe, recipe_name
from plsc_mae.config.resolve import parse

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(p for d in ("docs", "weights", "tests") for p in (ROOT / d).rglob("*.md"))})
SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
REDIRECTION = re.compile(r"\s\d?>>?\s*[&\w./-]+")
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^()\s]+)\)")
# Our programs and the command each stands for; plsc_mae counts after `python -m` only.
PROGRAMS = {
    **{f"main_{name}.py": [name] for name in ("pretrain", "finetune", "linprobe")},
    **{f"scripts/{name}.sh": [name] for name in ("pretrain", "finetune", "linprobe", "knn")},
    **{"bench/step.py": ["bench", "step"], "plsc-mae": [], "plsc_mae": []},
}
PROGRAM = re.compile(rf"(?:^|/)({'|'.join(map(re.escape, PROGRAMS))})$")
ANYTHING = "1"  # stands for what a reader fills in; good for a path, a number and a name
# A command may be mentioned without what it cannot do without.
REQUIRED = {
    **dict.fromkeys(("knn", "segprobe"), "--data_path DIR --model_path FILE"),
    **dict.fromkeys(("reconstruct", "predict"), "--model_path FILE --img_path DIR"),
    **{
        "demo-data": "DIR",
        "prepare-data": "DIR DIR",
        "split": "DIR DIR",
        "plot": "DIR",
        "report": "DIR",
        "runs": "DIR",
        "stats": "DIR",
        "compare": "--data_path DIR --pixels 32",
    },
}


class CommandLine(NamedTuple):
    """A command of ours as a document has it."""

    words: list[str]  # after the name of the program
    text: str
    mention: bool  # in running text, where it need not be complete


def shell_blocks(text: str) -> Iterator[str]:
    """Fenced blocks of a Markdown file that a reader may paste into a shell."""
    for language, block in FENCE.findall(text):
        if language in ("", "bash", "sh", "shell", "console"):
            yield block


def substituted(text: str) -> str:
    """Replace what a reader or the shell fills in: $(...), $NAME, ${NAME}, <name>, NAME=value of the same script."""
    text = text.replace("\\\n", " ").replace(' "$@"', "")
    text = re.sub(r"\$\(\((?:[^()]|\([^()]*\))*\)\)|\$\((?:[^()]|\([^()]*\))*\)", ANYTHING, text)
    for name, value in re.findall(r"(?:^|\s)(\w+)=([\w./-]+)(?=\s|$)", text):
        text = re.sub(rf"\${name}\b|\${{{name}}}", value, text)
    text = re.sub(r"\$\{[^}]*\}|\$\w+|\$[@*#]", ANYTHING, text)
    return re.sub(r"<[\w -]+>", ANYTHING, text)


def commands_of(line: str) -> Iterator[list[str]]:
    """The words after our programs in one shell line, comments and redirections left out."""
    lexer = shlex.shlex(REDIRECTION.sub("", line), posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe in prose
        return
    for is_operator, group in itertools.groupby(words, lambda word: bool(re.fullmatch("[&|;<>]+", word))):
        segment = list(group)
        if is_operator:
            continue
        for i, word in enumerate(segment):
            match = PROGRAM.search(word)
            if match is None or "=" in word or (match[1] == "plsc_mae" and segment[i - 1] != "-m"):
                continue
            command = PROGRAMS[match[1]] + [word.strip("[]") for word in segment[i + 1 :] if word not in ("...", "…")]
            if command[:1] == ["launch"]:
                own, command = split_launch(command[1:])
                yield ["launch", *own]
            if command:
                yield command
            break


def lines_in(path: Path) -> Iterator[CommandLine]:
    """Every command line of ours in a Markdown file, a shell script or the comments of a YAML file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks, mentions = list(shell_blocks(text)), INLINE.findall(FENCE.sub("", text))
    elif path.suffix == ".yaml":
        comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        blocks, mentions = ["\n".join(comments)], []
    else:
        blocks, mentions = [text], []
    for mention, part in [*((False, block) for block in blocks), *((True, span) for span in mentions)]:
        for line in substituted(part).splitlines():
            for words in commands_of(line):
                yield CommandLine(words, line.strip(), mention)


def found(paths: list[Path]) -> list[tuple[Path, CommandLine]]:
    return [(path, line) for path in paths for line in lines_in(path)]


def check(line: CommandLine, blank: Path) -> None:
    """Send a command line through the parser of its command; files of the reader's own are taken to be empty."""
    words = [word for word in line.words if word]
    if not words or words[0] in ("COMMAND", "--help", "--version", "help"):
        return
    words = [ANYTHING if PLACEHOLDER.fullmatch(word) else word for word in words]
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    assert name is not None, "no such command"
    rest = words[len(name.split()) :]
    for i, word in enumerate(rest[:-1]):
        if word in ("-c", "--config") and not (recipe_name(rest[i + 1]) or rest[i + 1].startswith("configs/")):
            assert "/" not in rest[i + 1] or rest[i + 1].endswith(".yaml"), no_recipe(rest[i + 1])
            rest[i + 1] = str(blank)
    if line.mention and (name == "reconstruct" or not rest):
        rest = [*REQUIRED.get(name, "").split(), *rest]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):  # a command may show --help
        parse(rest, COMMANDS[name].configs, prog=name, positional=COMMANDS[name].positional)


@pytest.fixture
def blank(tmp_path, monkeypatch) -> Path:
    """An empty config file; the working directory is the repository's, where the documents stand."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "blank.yaml"
    file.touch()
    return file


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS, *CONFIGS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_line_parses(path, blank):
    for line in lines_in(path):
        try:
            check(line, blank)
        except Exception as error:
            pytest.fail(f"{path.relative_to(ROOT)}: {line.text}\n{type(error).__name__}: {error}")


def test_the_command_lines_are_found():
    whole = [line for _, line in found([ROOT / "README.md", ROOT / "docs/pretrain.md"]) if not line.mention]
    assert {line.words[0] for line in whole} >= {"pretrain", "reconstruct", "plot", "report", "doctor"}
    assert len(whole) >= 6
    (official,) = (line for line in whole if line.words[:2] == ["pretrain", "--accum_iter"])
    assert official.words[-2:] == ["--data_path", "DIR"]
    assert len(official.words) == 20
    quickstart = found([ROOT / "scripts/quickstart.sh"])
    commands = [line.words[0] for _, line in quickstart]
    assert set(commands) == {"demo-data", "pretrain", "plot", "reconstruct", "compare", "report"}
    assert commands.count("pretrain") == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_is_headed_by_the_command_that_runs_it(path):
    lines = [line.words for line in lines_in(path) if line.words[0] in ("pretrain", "finetune", "linprobe")]
    assert lines
    for words in lines:
        assert str(path.relative_to(ROOT / "configs").with_suffix("")) in words
        assert "--data_path" in words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA=0 python -m plsc_mae plot out  # curve", [["plot", "out"]]),
        ("plsc-mae: error: unknown key 'x'", []),
        ("pip install plsc_mae", []),
        ("x=bin/plsc-mae\npython scripts/bench/step.py --amp", [["bench", "step", "--amp"]]),
        ("plsc-mae demo-data $D && bin/plsc-mae plot ${D:-x} >> a/log 2>&1", [["demo-data", "1"], ["plot", "1"]]),
        ("plsc-mae launch --processes 2 knn --pool cls", [["launch", "--processes", "2"], ["knn", "--pool", "cls"]]),
        ("plsc-mae plot out 2> err | tee log; plsc-mae doctor &", [["plot", "out"], ["doctor"]]),
        ("a=b/c\nplsc-mae plot $a/d --save_path <file name>", [["plot", "b/c/d", "--save_path", "1"]]),
        (
            'main_pretrain.py \\\n  --data_path "$(ls -t $x | head -1)" [--amp]',
            [["pretrain", "--data_path", "1", "--amp"]],
        ),
    ],
)
def test_extraction(text, expected):
    assert [words for line in substituted(text).splitlines() for words in commands_of(line)] == expected


def test_wrong_lines_are_noticed(blank):
    for text in ("plsc-mae pretrian", "plsc-mae pretrain --wieght_decay 1", "main_pretrain.py -c configs/none.yaml"):
        (words,) = commands_of(text)
        with pytest.raises((AssertionError, ValueError)):
            check(CommandLine(words, text, mention=False), blank)


TRANSLATIONS = [(ROOT / "README.md", ROOT / "README.zh-CN.md")]
TRANSLATIONS += [(ROOT / "docs" / page.name, page) for page in sorted((ROOT / "docs/zh").glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """The anchors of a page: those that GitHub derives from its headings, and explicit ones."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found: set[str] = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-")
        found.add(name if name not in found else f"{name}-1")
    return found


def links_of(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, anchor) of every link of a page to the repository."""
    for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if not re.match(r"\w+:", link):
            target, _, anchor = link.partition("#")
            yield (path.parent / target).resolve() if target else path, anchor


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    for target, anchor in links_of(path):
        assert target.exists(), target
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{target}#{anchor}"


def test_pages_that_messages_and_comments_name_exist():
    package = [path for room in ("plsc_mae", "scripts") for path in (ROOT / room).rglob("*.py")]
    for path in [*package, *CONFIGS, *SCRIPTS]:
        named = re.findall(r"\bdocs/[\w./-]+\.(?:md|svg)\b", path.read_text(encoding="utf-8"))
        assert not [page for page in named if not (ROOT / page).exists()], path


def pasted(path: Path) -> list[str]:
    """The lines of all shell blocks, without their comments, which may be translated."""
    lines = "\n".join(shell_blocks(path.read_text(encoding="utf-8"))).splitlines()
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line) for line in lines) if line]


@pytest.mark.parametrize(("english", "chinese"), TRANSLATIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_translations_have_the_same_commands_and_links(english, chinese):
    """All commands in the same order, and all links; a page that calls itself an excerpt has some of the commands."""
    own, original = pasted(chinese), pasted(english)
    assert own
    if "节选" in chinese.read_text(encoding="utf-8"):
        rest = iter(original)
        assert all(line in rest for line in own)
        return
    assert own == original
    translated = dict(TRANSLATIONS)
    expected = [(translated.get(target, target), anchor) for target, anchor in links_of(english)]
    switch = {(english, ""), (chinese, "")}
    assert Counter(x for x in links_of(chinese) if x not in switch) == Counter(x for x in expected if x not in switch)


# After a link, or a list of links: a full-width parenthesis or comma, and the word "English".
ENGLISH_MARK = re.compile(r"(?:、\[[^\]]*\]\([^)]*\))*[\uff08\uff0c](?:均为)?英文")


@pytest.mark.parametrize("page", [chinese for _, chinese in TRANSLATIONS], ids=lambda path: str(path.relative_to(ROOT)))
def test_chinese_pages_mark_links_to_english_pages(page):
    """A link to an English page is followed by （英文）, unless its own words are English or 英文页."""
    text, chinese = FENCE.sub("", page.read_text(encoding="utf-8")), {path for _, path in TRANSLATIONS}
    for link in re.finditer(r"\[([^\]]*)\]\(([^()\s#:]+\.md)[^()\s]*\)", text):
        english = (page.parent / link[2]).resolve() not in chinese
        assert not english or link[1] in ("English", "英文页") or ENGLISH_MARK.match(text, link.end()), link[0]


def test_the_readme_is_short_and_guides_begin_with_their_command():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    for page in (ROOT / "docs").glob("*.md"):
        introduction, *_ = page.read_text(encoding="utf-8").partition("\n## ")
        assert page.name in ("README.md", "tour.md") or "```" in introduction, page


def gallery_commands(name: str) -> list[list[str]]:
    return [line.words for line in lines_in(ROOT / name) if not line.mention]


def test_the_gallery_shows_the_commands_of_its_script():
    commands = gallery_commands("docs/gallery.md")
    assert commands == gallery_commands("scripts/gallery.sh")
    assert {words[0] for words in commands} >= {"pretrain", "reconstruct", "explain", "extract", "segprobe", "plot"}


def test_the_gallery_takes_checkpoints_that_its_recipes_save():
    recipes = {"first_epoch": "mae_objects", "norm_pix": "mae_objects", "mae_objects": "mae_objects", "cae": "cae"}
    words = {word for command in gallery_commands("docs/gallery.md") for word in command}
    files = [match for word in sorted(words) if (match := re.search(r"/(\w+)/checkpoint-(\d+)\.pd$", word))]
    assert {file[1] for file in files} == set(recipes)
    for file in files:
        config = yaml.safe_load((ROOT / f"configs/demo/{recipes[file[1]]}.yaml").read_text(encoding="utf-8"))
        epoch, every = int(file[2]) + 1, config["save_ckpt_freq"]
        assert file[1] == "first_epoch" or epoch == config["epochs"] or epoch % every == 0, file[0]


def test_the_pictures_of_the_gallery_are_small_and_shown():
    pictures = list((ROOT / "docs/gallery").iterdir())
    assert sum(picture.stat().st_size for picture in pictures) < 1_500_000
    assert set(pictures) <= {target for target, _ in links_of(ROOT / "docs/gallery.md")}


def test_the_excerpts_of_the_worked_example_are_its_source():
    text = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    rooms = ("models", "config", "methods")
    sources = [(ROOT / f"plsc_mae/{room}/simmim.py").read_text(encoding="utf-8").splitlines() for room in rooms]
    for block in blocks:
        lines = [line for line in block.splitlines() if line]
        assert any(all(line in rest for line in lines) for rest in map(iter, sources)), block


def test_the_tests_of_the_fault_campaign_exist():
    listed = subprocess.run(
        [sys.executable, "scripts/bench/faults_report.py", "--tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(listed) > 40
    for file, _, name in (node.partition("::") for node in listed):
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


def test_the_library_example_runs(capsys, tmp_path, monkeypatch):
    """As docs/reference/networks.md has it, with ViT-Ti in place of ViT-B, which would take several times as long."""
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/reference/networks.md").read_text(), re.M | re.S)
    assert "mae_vit_base_patch16" in example
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    exec(example.replace("mae_vit_base_patch16", "mae_vit_tiny_patch16"), names)
    shown = capsys.readouterr().out
    assert "mae_vit_tiny_patch16" in shown
    assert list(names["features"].shape) == [2, 1 + 12 * 16, 192]
    assert not names["report"].missing
    assert not names["report"].unexpected
