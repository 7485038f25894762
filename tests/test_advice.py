"""Advice knows its command: a message that names a flag is reached only by commands that have the flag.

The messages are found in the source: texts with `--flag` that are not docstrings. A call graph by names leads from each
command to the functions that it can reach; a method counts if its class is reached and some reached code uses an
attribute of its name. Texts of config classes are checked against the options of the class. A text that names another
command, as in `plsc-mae predict --model_path FILE`, is checked against that one.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import plsc_mae
from plsc_mae.cli import COMMANDS
from plsc_mae.config.schema import vocabulary

PACKAGE = Path(plsc_mae.__file__).parent
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)")
OTHER_COMMAND = re.compile(r"plsc-mae ((?:weights |bench |plan )?[a-z-]+)((?: (?!plsc-mae)[^;`]*)?)")
OTHER_PROGRAMS = {"query", "format", "shm", "log_dir"}  # nvidia-smi, docker, Paddle's launcher
ALWAYS = {"config", "help", "version"}
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


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


MODULES = {module.name: module for module in map(Module, sorted(PACKAGE.rglob("*.py")))}


def located(dotted: str) -> Place | None:
    """The definition of a dotted name, through re-exports of packages."""
    module, _, name = dotted.rpartition(".")
    if module not in MODULES:
        return None
    if name in MODULES[module].nodes:
        return Place(module, name)
    return located(MODULES[module].imports[name]) if name in MODULES[module].imports else None


class Uses(NamedTuple):
    """What a piece of code refers to: definitions of the package, and attributes of objects by name."""

    places: set[Place]
    attributes: set[str]


@functools.cache
def uses(module: str, name: str, member: str = "") -> Uses:
    """The uses of a definition; those of a class are its decorators, bases and attributes, without its methods."""
    found = Uses(set(), set())
    for node in MODULES[module].nodes[name]:
        if member:
            (node,) = (m for m in methods(module, name) if m.name == member)
            collect(node, module, found)
        elif isinstance(node, ast.ClassDef):
            for child in (*node.decorator_list, *node.bases, *node.body):
                if not isinstance(child, Function):
                    collect(child, module, found)
        else:
            collect(node, module, found)
    return found


def methods(module: str, name: str) -> list[ast.FunctionDef]:
    (node,) = MODULES[module].nodes[name]
    return [child for child in getattr(node, "body", []) if isinstance(child, Function)] if is_class(node) else []


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def collect(node: ast.AST, module: str, found: Uses) -> None:
    """Add the uses of a node; annotations, isinstance and casts refer to classes without using them."""
    own = MODULES[module]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass", "cast"):
        for child in node.args[0:1] if node.func.id != "cast" else node.args[1:]:
            collect(child, module, found)
        return
    if isinstance(node, ast.Name):
        place = Place(module, node.id) if node.id in own.nodes else located(own.imports.get(node.id, ""))
        found.places.update({place} if place else ())
    elif isinstance(node, ast.Attribute):
        base = own.imports.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
        place = located(f"{base}.{node.attr}") if base in MODULES else None
        found.places.update({place} if place else ())
        found.attributes.add(node.attr)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if place := located(node.value.replace(":", ".")):
            found.places.add(place)
        if node.value.isidentifier():  # getattr(self, "name")
            found.attributes.add(node.value)
    elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        prefix = str(node.values[0].value)  # import_module(f"plsc_mae.methods.{name}").METHOD
        if prefix.startswith("plsc_mae."):
            for other in MODULES:
                if other.startswith(prefix):
                    found.places.update(Place(other, name) for name in MODULES[other].nodes if name.isupper())
    for field, child in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for part in child if isinstance(child, list) else [child]:
            if isinstance(part, ast.AST):
                collect(part, module, found)


def reached_by(start: Place) -> Iterator[tuple[Place, str]]:
    """Every definition and (class, method) that a function can reach."""
    seen: set[tuple[Place, str]] = set()
    classes: set[Place] = set()
    attributes: set[str] = set()
    waiting = [(start, "")]
    while waiting:
        place, member = waiting.pop()
        if (place, member) in seen or place.module.startswith("plsc_mae.config"):
            continue
        seen.add((place, member))
        found = uses(*place, member)
        attributes |= found.attributes
        waiting += [(other, "") for other in found.places]
        if methods(*place) if len(MODULES[place.module].nodes[place.name]) == 1 else ():
            classes.add(place)
        for owner in classes:
            waiting += [
                (owner, method.name)
                for method in methods(*owner)
                if (method.name in attributes or method.name.startswith("__")) and (owner, method.name) not in seen
            ]
    yield from seen


def texts(node: ast.AST) -> Iterator[str]:
    """The texts within a node that name a flag, docstrings left out; parts of an f-string are one text."""
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        if FLAG.search(text):
            yield text
        for part in node.values:
            if not isinstance(part, ast.Constant):
                yield from texts(part)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value):
        yield node.value
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


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
            wrong |= {f"{name} --{flag}" for flag in FLAG.findall(match[2]) if flag not in flags_of(name)}
    for flag in FLAG.findall(OTHER_COMMAND.sub("", text)):
        if flag not in flags | OTHER_PROGRAMS:
            wrong.add(f"--{flag}")
    return wrong


def nodes_of(place: Place, member: str) -> list[ast.AST]:
    if member:
        return [method for method in methods(*place) if method.name == member]
    nodes = MODULES[place.module].nodes[place.name]
    return [
        child for node in nodes for child in (node.body if is_class(node) else [node]) if not is_method(node, child)
    ]


def is_method(owner: ast.AST, node: ast.AST) -> bool:
    return is_class(owner) and isinstance(node, Function)


@pytest.mark.parametrize("command", COMMANDS)
def test_messages_name_flags_of_their_command(command):
    module, _, function = COMMANDS[command].run.partition(":")
    flags, wrong = flags_of(command), []
    for place, member in reached_by(Place(module, function)):
        for node in nodes_of(place, member):
            wrong += [
                f"{place.module}:{place.name}.{member}: {found} in {text!r}"
                for text in texts(node)
                if (found := wrong_flags(text, flags))
            ]
    assert not sorted(wrong)


@pytest.mark.parametrize("command", COMMANDS)
def test_config_classes_name_their_own_flags(command):
    wrong = []
    for cls in COMMANDS[command].configs.values():
        flags = flags_of(command) & (vocabulary(cls) | {f"no_{name}" for name in vocabulary(cls)}) | {"method"} | ALWAYS
        for base in cls.__mro__:
            if base.__module__ in MODULES and base.__name__ in MODULES[base.__module__].nodes:
                for method in methods(base.__module__, base.__name__):
                    wrong += [
                        f"{cls.__name__}: {found} in {text!r}"
                        for text in texts(method)
                        if (found := wrong_flags(text, flags))
                    ]
    assert not wrong
