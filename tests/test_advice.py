"""Advice knows its command: a message that names a flag is reached only by commands that have the flag.

The messages are found in the source: texts with `--flag` that are not docstrings. A call graph by names leads from each
command to the functions that it can reach; a method counts if its class is reached and some reached code uses an
attribute of its name, and a branch below `isinstance(config, X)` only for commands with such a config. Texts of config
classes are checked against the options of the class. A text that names another command, as in `plsc-mae predict
--model_path FILE`, is checked against that one. Texts within `flag(...)` and `remedies(...)` are chosen by the running
command, so they are left out.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

import plsc_mae
from plsc_mae.cli import COMMANDS, main
from plsc_mae.config.schema import vocabulary
from plsc_mae.errors import flag, remedies, use_flags

PACKAGE = Path(plsc_mae.__file__).parent
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)")
OTHER_COMMAND = re.compile(r"plsc-mae ((?:weights |bench |plan )?[a-z-]+)((?: (?!plsc-mae)[^;`]*)?)")
OTHER_PROGRAMS = {"query", "format", "shm", "log_dir"}  # nvidia-smi, docker, Paddle's launcher
ALWAYS = {"config", "help", "version"}
# What the graph reaches although it is no message of the command, by reason.
EXEMPT = {
    "parts of the command lines that `weights inspect` prints": (
        "commands.usage_lines",
        "commands.accepted_uses",
        "methods.mae:AutoencoderMethod.describe",
        "methods.contract:layer_scale_flag",
        "methods.mae_priv:_classifier_flags",
    ),
    "parts of the command lines that a run prints at its end": (
        "commands.next_steps:_classifier_flags",
        "commands.next_steps:_crops",
    ),
    "parts of the command lines for images that are not square": ("commands.doctor_sizes:_whole_images",),
    "a flag of Paddle's launcher or of launch": (
        "commands.launch:launcher_words",
        "gpu_check.supervisor:collectives_command",
        "train.announcements:continuation",
    ),
    "about the value of an option; commands without the option never set it": (
        "data.decode:_opencv",
        "data.randaugment:_bad_notation",
        "loading.class_names:_read_names",
        "loading.class_names:_warn_of_other_names",
        "methods.cae:CAETask.draw",
        "methods.classify:ClassifyTask.load_extra_state",
        "methods.mae:MAETask.draw",
        "methods.mae_priv:_classifier_arguments",
        "methods.simmim:SimMIMTask.draw",
        "optim.schedule:by_updates",
        "parallel.tensor:check_divisible",
        "pipeline.stages",
        "plan.estimate:Layout.of",
    ),
}
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


CONFIG_CLASSES = {
    base.__name__ for command in COMMANDS.values() for cls in command.configs.values() for base in cls.__mro__
}


Kinds = frozenset[str]  # names of the config classes of a command


class Place(NamedTuple):
    """A function, method, class or constant of the package, as ("plsc_mae.train.setup", "build_trainer")."""

    module: str
    name: str


class Module:
    """The definitions of a module and the names it imports from the package."""

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.nodes: dict[str, list[ast.AST]] = {}
        self.imports: dict[str, str] = {}
        self.guards: Kinds = frozenset(CONFIG_CLASSES & set(re.findall(r"\w+", path.read_text(encoding="utf-8"))))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plsc_mae"):
                self.imports |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in tree.body:
            if isinstance(node, (*Function, ast.ClassDef)):
                self.nodes[node.name] = [node]
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name):
                    self.nodes.setdefault(target.id, []).append(node)


@functools.cache
def modules() -> dict[str, Module]:
    """Parse the package and return its modules by name."""
    return {module.name: module for module in map(Module, sorted(PACKAGE.rglob("*.py")))}


@functools.cache
def located(dotted: str) -> Place | None:
    """The definition of a dotted name, through re-exports of packages."""
    module, _, name = dotted.rpartition(".")
    if module not in modules():
        return None
    if name in modules()[module].nodes:
        return Place(module, name)
    return located(modules()[module].imports[name]) if name in modules()[module].imports else None


class Uses(NamedTuple):
    """What a piece of code refers to: definitions of the package, and attributes of objects by name."""

    places: set[Place]
    attributes: set[str]


@functools.cache
def uses(module: str, name: str, member: str, kinds: Kinds) -> Uses:
    """The uses of a definition; those of a class are its decorators, bases and attributes, without its methods."""
    found = Uses(set(), set())
    for node in modules()[module].nodes[name]:
        if member:
            (node,) = (m for m in methods(module, name) if m.name == member)
            collect(node, module, found, kinds)
        elif isinstance(node, ast.ClassDef):
            for child in (*node.decorator_list, *node.bases, *node.body):
                if not isinstance(child, Function):
                    collect(child, module, found, kinds)
        else:
            collect(node, module, found, kinds)
    return found


@functools.cache
def methods(module: str, name: str) -> list[ast.FunctionDef]:
    (node,) = modules()[module].nodes[name]
    return [child for child in getattr(node, "body", []) if isinstance(child, Function)] if is_class(node) else []


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def collect(node: ast.AST, module: str, found: Uses, kinds: Kinds) -> None:
    """Add the uses of a node; annotations, isinstance and casts refer to classes without using them."""
    own = modules()[module]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass", "cast"):
        for child in node.args[0:1] if node.func.id != "cast" else node.args[1:]:
            collect(child, module, found, kinds)
        return
    if isinstance(node, ast.Name):
        place = Place(module, node.id) if node.id in own.nodes else located(own.imports.get(node.id, ""))
        found.places.update({place} if place else ())
    elif isinstance(node, ast.Attribute) and (prefix := loaded_package(node.value)):
        loaded = [name for name in modules() if name.startswith(prefix) and node.attr in modules()[name].nodes]
        found.places.update(Place(name, node.attr) for name in loaded)
        return
    elif isinstance(node, ast.Attribute):
        base = own.imports.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
        place = located(f"{base}.{node.attr}") if base in modules() else None
        found.places.update({place} if place else ())
        found.attributes.add(node.attr)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if place := located(node.value.replace(":", ".")):
            found.places.add(place)
        if node.value.isidentifier():  # getattr(self, "name")
            found.attributes.add(node.value)
    elif prefix := loaded_package(node):
        for other in modules():
            if other.startswith(prefix):
                found.places.update(Place(other, name) for name in modules()[other].nodes)
    for part in children(node, kinds):
        collect(part, module, found, kinds)


def loaded_package(node: ast.AST) -> str:
    """The package of `import_module(f"plsc_mae.methods.{name}")`, with a dot at its end; else ""."""
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("import_module"):
        text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        if isinstance(text, ast.Constant) and str(text.value).startswith("plsc_mae."):
            return str(text.value)
    return ""


def children(node: ast.AST, kinds: Kinds) -> Iterator[ast.AST]:
    """The child nodes without annotations and without the branch for configs that the command does not have."""
    skipped = {"annotation", "returns"}
    if isinstance(node, ast.If):
        parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
        calls = [part for part in parts if isinstance(part, ast.Call) and getattr(part.func, "id", "") == "isinstance"]
        wanted = {getattr(call.args[1], "id", "") for call in calls} & CONFIG_CLASSES
        skipped |= {"body"} if wanted - kinds else set()
    for field, child in ast.iter_fields(node):
        if field not in skipped:
            yield from (part for part in (child if isinstance(child, list) else [child]) if isinstance(part, ast.AST))


def reached_by(start: Place, kinds: Kinds) -> Iterator[tuple[Place, str]]:
    """Every definition and (class, method) that a function can reach."""
    seen: set[tuple[Place, str]] = set()
    attributes: set[str] = set()
    unused: dict[str, list[tuple[Place, str]]] = {}  # methods of reached classes by names that no code has used yet
    waiting = [(start, "")]
    while waiting:
        place, member = waiting.pop()
        if (place, member) in seen or place.module.startswith("plsc_mae.config"):
            continue
        seen.add((place, member))
        found = uses(*place, member, kinds & modules()[place.module].guards)
        waiting += [(other, "") for other in found.places]
        if not member and len(modules()[place.module].nodes[place.name]) == 1:
            for method in methods(*place):
                known = method.name in attributes or method.name.startswith("__")
                (waiting if known else unused.setdefault(method.name, [])).append((place, method.name))
        for name in found.attributes - attributes:
            attributes.add(name)
            waiting += unused.pop(name, [])
    yield from seen


def texts(node: ast.AST, kinds: Kinds = frozenset(CONFIG_CLASSES)) -> Iterator[str]:
    """The texts within a node that name a flag, docstrings left out; parts of an f-string are one text."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("flag", "remedies"):
        return
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        if FLAG.search(text):
            yield text
        for part in node.values:
            if not isinstance(part, ast.Constant):
                yield from texts(part, kinds)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value):
        yield node.value
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    for child in children(node, kinds):
        yield from texts(child, kinds)


@functools.cache
def flags_of(command: str) -> set[str]:
    """Every flag of a command, of all its methods."""
    configs = COMMANDS[command].configs
    known = set().union(*(vocabulary(cls) for cls in configs.values()))
    return known | {f"no_{name}" for name in known} | ALWAYS | ({"method"} if "" not in configs else set())


def wrong_flags(text: str, flags: set[str]) -> set[str]:
    """The flags in a text that are not among `flags`; a part that quotes another command is held against that."""
    wrong = set()
    for match in OTHER_COMMAND.finditer(text):
        name = match[1]
        if name in COMMANDS and name != "launch":
            wrong |= {f"{name} --{named}" for named in FLAG.findall(match[2]) if named not in flags_of(name)}
    own = FLAG.findall(OTHER_COMMAND.sub("", text))
    return wrong | {f"--{named}" for named in own if named not in flags | OTHER_PROGRAMS}


def nodes_of(place: Place, member: str) -> list[ast.AST]:
    if member:
        return [method for method in methods(*place) if method.name == member]
    nodes = modules()[place.module].nodes[place.name]
    return [
        child for node in nodes for child in (node.body if is_class(node) else [node]) if not is_method(node, child)
    ]


def is_method(owner: ast.AST, node: ast.AST) -> bool:
    return is_class(owner) and isinstance(node, Function)


def is_exempt(where: str) -> bool:
    return any(where == name or where.startswith(f"{name}:") for names in EXEMPT.values() for name in names)


@functools.cache
def messages(command: str) -> list[tuple[str, str]]:
    """Every (place, text) with a flag that a command can reach."""
    module, _, function = COMMANDS[command].run.partition(":")
    kinds = frozenset(base.__name__ for cls in COMMANDS[command].configs.values() for base in cls.__mro__)
    found = []
    for place, member in sorted(reached_by(Place(module, function), kinds)):
        where = f"{place.module.removeprefix('plsc_mae.')}:{place.name}{f'.{member}' if member else ''}"
        for node in nodes_of(place, member):
            found += [(where, text) for text in texts(node, kinds)]
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_messages_name_flags_of_their_command(command):
    found = [(where, text) for where, text in messages(command) if not is_exempt(where)]
    wrong = [(where, flags, text) for where, text in found if (flags := wrong_flags(text, flags_of(command)))]
    assert not wrong


def test_the_graph_reaches_what_commands_run():
    """Messages deep below a command are found, and those of others are not."""
    for command, where in {
        "pretrain": "optim.sharding:check_stage",
        "finetune": "train.plausibility:check_accumulation",
        "linprobe": "methods.mae_priv:_classifier_arguments",
        "knn": "commands.knn:_loaded",
        "weights convert": "commands.convert:_settings",
        "plan pretrain": "plan.estimate:Layout.of",
    }.items():
        assert where in {place for place, _ in messages(command)}
    assert not {place for place, _ in messages("plot")} & {place for place, _ in messages("pretrain")}
    reached = {place for command in COMMANDS for place, _ in messages(command)}
    unused = [name for names in EXEMPT.values() for name in names if not any(is_exempt(place) for place in reached)]
    assert not unused


def test_advice_follows_the_command():
    assert flag("data_path", "img_path") == "--data_path"
    assert remedies("repair it", "pass --bad_image skip") == "repair it, or pass --bad_image skip"
    use_flags({"img_path", "amp"})
    try:
        assert flag("data_path", "img_path") == "--img_path"
        assert flag("no_amp") == "--no_amp"
        assert flag("worker_timeout") == "worker_timeout"
        assert remedies("repair it", "pass --bad_image skip") == "repair it"
        assert remedies("a", "b --amp", "c") == "a, b --amp, or c"
        assert remedies("pass --bad_image skip") == ""
    finally:
        use_flags(None)


@pytest.mark.parametrize(
    ("line", "named", "missing"),
    [
        ("predict --model_path x --img_path PLACE/none", "--img_path PLACE/none does not exist", "--data_path"),
        ("extract --model_path x --data_path PLACE/none --save_path x.npz", "--data_path PLACE/none does not", "--img"),
        ("pretrain --tensor_parallel 2 --data_path PLACE --device cpu", "--tensor_parallel 2", "--pipeline_parallel"),
        ("knn --scheduler cosine", "--scheduler", "--warmup_epochs"),
    ],
)
def test_commands_name_their_own_flags(tmp_path, capfd, line, named, missing):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(line.replace("PLACE", str(tmp_path)).split()) == 2
    err = capfd.readouterr().err
    assert named.replace("PLACE", str(tmp_path)) in err
    assert missing not in err
    assert flag("nothing_has_this") == "--nothing_has_this"  # outside of a command, every flag may be named


@pytest.mark.parametrize("command", COMMANDS)
def test_config_classes_name_their_own_flags(command):
    wrong = []
    for cls in COMMANDS[command].configs.values():
        flags = flags_of(command) & (vocabulary(cls) | {f"no_{name}" for name in vocabulary(cls)}) | {"method"} | ALWAYS
        for base in cls.__mro__:
            if base.__module__ in modules() and base.__name__ in modules()[base.__module__].nodes:
                for method in methods(base.__module__, base.__name__):
                    wrong += [
                        f"{cls.__name__}: {found} in {text!r}"
                        for text in texts(method)
                        if (found := wrong_flags(text, flags))
                    ]
    assert not wrong
