"""The rules the package is built by, read off its source: who may import whom, and what a file may look like."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from plsc_mae.cli import COMMANDS
from plsc_mae.config import CONFIGS, PRETRAIN

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plsc_mae"
FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [*sorted(ROOT.glob("main_*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
SOURCES = [*FILES, *PROGRAMS]

# A unit imports itself and the layers below its own; the units of one layer may import each other unless NOTHING_BUT
# says otherwise.
LAYERS = (
    {"console", "errors", "file_kinds", "files", "folder_lock", "names", "runtime", "verbs", "wording"},
    {"config"},
    {"analysis", "models", "data", "masking", "losses", "optim", "weights", "parallel"},
    {"methods"},
    {"pipeline"},
    {"loading"},
    {"train"},
    {"export", "gpu_check", "parity", "plan", "report"},
    {"commands"},
    {"api"},
    {"cli"},
    {"__main__", "program"},
)
NOTHING_BUT = {
    "errors": set(),
    "files": set(),
    "runtime": set(),
    "verbs": set(),
    "names": set(),
    "wording": set(),
    "console": {"names"},
    "file_kinds": {"errors", "names"},
    "folder_lock": {"errors"},
    "config": {"errors", "file_kinds"},
    "models": {"masking", "losses", "errors"},
    "data": {"errors", "file_kinds", "files", "names", "wording"},
    "weights": {"errors", "file_kinds", "files", "wording"},
    "program": {"cli", "__main__", "config"},
}
# Programs that wrap or build parts of the package to count or time what they do.
INSTRUMENTS = tuple(f"scripts/bench/{name}.py" for name in ("launches", "classify_step", "knn_search", "packed_data"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 500

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def unit(path: Path) -> str:
    """The part of the package a file belongs to: `models` for plsc_mae/models/vit.py, `cli` for plsc_mae/cli.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0] if path in FILES else "program"


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)} line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """Units and modules of the package that a file imports, as `models.vit.pair`."""
    for name in imports(path):
        if name.startswith("plsc_mae."):
            yield name.removeprefix("plsc_mae.")


def test_every_part_of_the_package_has_its_layer():
    known = set().union(*LAYERS)
    assert len(FILES) > 40
    assert {unit(path) for path in FILES} - {"__init__"} == known - {"program"}


def test_imports_run_one_way():
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in SOURCES:
        if path == PACKAGE / "__init__.py" or place(path) in INSTRUMENTS:
            continue
        user = unit(path)
        for name in own_imports(path):
            used = name.partition(".")[0]
            if used in (user, "__version__"):
                continue
            if used not in NOTHING_BUT.get(user, {used}) or height[used] > height[user]:
                wrong.append(f"{place(path)} imports plsc_mae.{name}")
    assert not wrong


def test_no_circle_among_parts():
    uses: dict[str, set[str]] = {}
    for path in FILES:
        if path != PACKAGE / "__init__.py":
            used = {name.partition(".")[0] for name in own_imports(path)}
            uses.setdefault(unit(path), set()).update(used - {unit(path)})
    graphlib.TopologicalSorter(uses).prepare()  # raises CycleError, which names the circle


def test_importing_the_package_loads_only_settings():
    """Names are loaded on first use; __init__ imports the environment variables to set before Paddle."""
    for node in tree(PACKAGE / "__init__.py").body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "plsc_mae" not in ast.unparse(node).replace("from plsc_mae.runtime", "")


def test_the_engine_knows_no_method():
    names = {*PRETRAIN, "mae", "cae"}
    wrong = []
    for path in FILES:
        if unit(path) != "train":
            continue
        concrete = [name for name in own_imports(path) if re.match(r"methods(?!\.(?:base|contract)\b)", name)]
        wrong += [f"{place(path)} imports plsc_mae.{name}" for name in concrete]
        text = re.sub("plsc[-_]?mae", "", path.read_text(encoding="utf-8"), flags=re.IGNORECASE)
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(rf"(?<![a-z])({'|'.join(names)})", line, flags=re.IGNORECASE):
                wrong.append(f"{place(path)}:{number}: {line.strip()}")
    assert not wrong


def test_concrete_methods_are_loaded_by_name():
    """Nothing above methods/ imports one."""
    for path in SOURCES:
        if unit(path) in ("commands", "train", "loading", "cli", "program"):
            for name in own_imports(path):
                assert name.split(".")[:2] not in [["methods", method] for method in PRETRAIN], place(path)


# Where a method's own files are: anything below may name it.
OWN_FILES = ("methods/", "models/", "config/", "weights/", "parity/networks/", "parity/oracle/", "parity/references/")


def test_methods_answer_for_themselves():
    """Outside its own files no module, class or string of the code is a method's; prose may cite."""
    modules = {f"{unit}.{name}" for unit in ("methods", "models", "config") for name in (*PRETRAIN, "mae", "cae")}
    modules |= {f"parity.{unit}.{name}" for unit in ("networks", "oracle") for name in PRETRAIN}
    classes = {cls.__name__ for cls in CONFIGS} | {"MaskedAutoencoder", "ContextAutoencoder"}
    wrong = []
    for path in FILES:
        if str(path.relative_to(PACKAGE)).startswith((*OWN_FILES, "optim/")):
            continue
        used = {".".join(name.split(".")[:size]) for name in own_imports(path) for size in (2, 3)}
        found = used & modules
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in PRETRAIN:
                found.add(f"'{node.value}' in line {node.lineno}")
            elif isinstance(node, (ast.Name, ast.alias)):
                found |= classes & {node.id if isinstance(node, ast.Name) else node.name}
        wrong += [f"{place(path)}: {name}" for name in sorted(found)]
    assert not wrong


def test_commands_do_not_import_each_other():
    """Their shared code lives below; what has no entry in the table, such as `pictures`, is no command."""
    modules = {command.run.partition(":")[0].removeprefix("plsc_mae.") for command in COMMANDS.values()}
    users = [path for path in FILES if unit(path) == "commands"]
    assert len(users) > len(modules) > 10
    for path in users:
        for name in own_imports(path):
            assert not {name, name.rpartition(".")[0]} & modules, f"{place(path)} imports plsc_mae.{name}"


def test_weight_files_are_read_without_paddle_or_torch():
    readers = [PACKAGE / "weights" / f"{name}.py" for name in ("reader", "safe_pickle", "tensor_builders", "flatten")]
    readers += sorted((PACKAGE / "weights" / "dialects").glob("*.py"))
    assert len(readers) > 6
    for path in readers:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & {"paddle", "torch"}, place(path)
        for name in own_imports(path):
            assert name.split(".")[:2] != ["weights", "convert"], place(path)


def test_paddle_is_imported_by_what_computes_only():
    for path in FILES:
        pure = ("console", "errors", "file_kinds", "files", "names", "runtime", "config", "cli", "__main__", "__init__")
        if unit(path) in pure:
            tops = {name.partition(".")[0] for name in imports(path)}
            assert not tops & {"paddle", "numpy"}, place(path)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_unsafe_readers(path):
    # What runs the originals' code does so in a process of its own, and reads .npz files only.
    assert "references" in path.parts or "torch" not in {name.partition(".")[0] for name in imports(path)}
    forbidden = {
        "paddle.load",
        "pickle.load",
        "pickle.loads",
        "torch.load",
        "yaml.load",
        "yaml.unsafe_load",
        "marshal.loads",
    }
    attributes = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    assert not (attributes | set(imports(path))) & forbidden
    called = {node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
    assert not called & {"eval", "exec"}


def test_options_are_declared_in_config_only():
    for path in FILES:
        if unit(path) != "config":
            assert "add_argument" not in path.read_text(encoding="utf-8"), place(path)


def test_names_say_what_is_inside():
    vague = {"utils", "util", "misc", "common", "helper", "helpers"}
    for folder in (PACKAGE, ROOT / "tests", ROOT / "scripts"):
        for path in folder.rglob("*"):
            assert not set(re.split(r"[_.\W]+", path.name.lower())) & vague, place(path)


def test_files_and_functions_are_short():
    long = []
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long.append(f"{place(path)}: {lines} lines")
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, Function)]
        sizes = [(node.name, node.end_lineno - node.lineno + 1) for node in functions]
        long += [f"{place(path)}: {name} has {size} lines" for name, size in sizes if size > MAX_FUNCTION_LINES]
    assert not long


def undocumented(path: Path) -> Iterator[str]:
    """Public modules, classes, functions and methods of a file that have no docstring."""

    def visit(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, *Function)) and not child.name.startswith("_"):
                if not ast.get_docstring(child):
                    yield f"{place(path)}: {prefix}{child.name}"
                if isinstance(child, ast.ClassDef):
                    yield from visit(child, f"{child.name}.")

    if not ast.get_docstring(tree(path)):
        yield f"{place(path)}: the module"
    yield from visit(tree(path), "")


def test_everything_public_is_explained():
    assert [name for path in FILES for name in undocumented(path)] == []
