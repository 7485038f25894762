"""Decodes a pickle without running any of it; every pickle the project reads passes through here.

The opcodes are interpreted one by one. Containers and plain values are built; a global becomes a `Symbol`, and an
object made from it a `Foreign` stand-in that merely keeps its arguments and state, unless the caller's allow-list has a
builder for it. Nothing is imported and no attribute of a real object is set, so a file can neither run code nor alter
the process.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO, Any, TypeAlias

Builders: TypeAlias = Mapping[str, Callable[..., Any]]
SCALARS = (str, bytes, int, float, complex, type(None))  # bool is an int

# Python 2 and NumPy 2 spell these modules differently; allow-lists use the names on the right.
SYNONYMS = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}


@dataclass(frozen=True)
class Symbol:
    """A class, function or constant named by the file; never imported."""

    path: str


class Foreign:
    """Stand-in for an object of another program: built, filled and given state, it does nothing.

    Attributes:
        path: dotted name of the class or function it was made with.
        args: positional arguments of that call.
        state: what the file asked to be its `__dict__`, if anything.
        entries: items set on it, as on a dict subclass.
        elements: items appended to it, as on a list subclass.
    """

    def __init__(self, path: str, args: Iterable[Any] = ()) -> None:
        self.path = path
        self.args = tuple(args)
        self.state: Any = None
        self.entries: dict[Any, Any] = {}
        self.elements: list[Any] = []

    def build(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    def describe(self) -> str:
        """Name the object and its plain arguments, such as `torch.device('cuda', 0)`."""
        shown = [reprlib.repr(arg) if isinstance(arg, str | int | float) else "..." for arg in self.args[:4]]
        return f"{self.path}({', '.join(shown)})"


def decode(stream: IO[bytes], builders: Builders, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Decode one pickle and leave the stream just behind it.

    Args:
        stream: where the pickle starts; whatever follows it is not read.
        builders: dotted global name -> function called in its place.
        persistent: resolves persistent ids, which torch uses for storages.

    Returns:
        Plain containers and scalars (a set reads as a list), `Symbol`s, `Foreign`s and what the builders return.

    Raises:
        UnpicklingError: the pickle is malformed or uses an opcode that has no place in a weight file.
        ValueError: the argument of an opcode is malformed or cut short.
    """
    machine = _Machine(builders, persistent)
    for opcode, arg, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _LITERALS:
            machine.stack.append(arg)
        elif name in _ACTIONS:
            _ACTIONS[name](machine)
        elif name in _ACTIONS_WITH_ARGUMENT:
            _ACTIONS_WITH_ARGUMENT[name](machine, arg)
        elif name not in _MARGINALIA:
            raise UnpicklingError(f"pickle opcode {name} has no place in a weight file")
    return machine.pop()


class _Machine:
    """The pickle virtual machine: a stack, the stacks set aside by MARK, and the memo."""

    def __init__(self, builders: Builders, persistent: Callable[[Any], Any] | None) -> None:
        self.builders = builders
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise UnpicklingError("the pickle uses a value that was never put")
        return self.stack[-1]

    # Groups and memo

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise UnpicklingError("the pickle closes a group that was never opened")
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop_any(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise UnpicklingError(f"the pickle recalls value {index}, which was never stored")
        self.push(self.memo[index])

    # Containers

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise UnpicklingError("the pickle uses a value that was never put")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append_items(self, items: list[Any]) -> None:
        """Extend the list on top of the stack, or the inert stand-in for one."""
        target = self.top()
        if isinstance(target, Foreign):
            target = target.elements
        if not isinstance(target, list):
            raise UnpicklingError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Update the mapping on top of the stack with alternating keys and values."""
        target = self.top()
        if isinstance(target, Foreign):
            target = target.entries
        if not isinstance(target, dict):
            raise UnpicklingError(f"the pickle sets items of a {type(target).__name__}")
        target.update(_pairs(items))

    # Objects

    def push_symbol(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnpicklingError("the pickle names a global by something that is not a string")
        self.push(Symbol(f"{SYNONYMS.get(module, module)}.{name}"))

    def push_named_symbol(self) -> None:
        name = self.pop()
        self.push_symbol(self.pop(), name)

    def call(self, function: Any, args: Any) -> None:
        if not (isinstance(function, Symbol | Foreign) and isinstance(args, tuple | list)):
            raise UnpicklingError("the pickle calls something that is not a function")
        builder = self.builders.get(function.path) if isinstance(function, Symbol) else None
        self.push(builder(*args) if builder else Foreign(function.path, args))

    def reduce(self) -> None:
        args = self.pop()
        self.call(self.pop(), args)

    def new_with_keywords(self) -> None:
        self.pop()  # only foreign classes take keywords, and a stand-in has no use for them
        self.reduce()

    def instance(self, name: str) -> None:
        args = self.pop_mark()
        self.push_symbol(*name.split(" ", 1))
        self.call(self.pop(), args)

    def object(self) -> None:
        items = self.pop_mark()
        self.call(items[0] if items else None, items[1:])

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Foreign):
            target.build(state)  # plain containers carry no state that matters, such as a state dict's `_metadata`

    def load_persistent(self, reference: Any) -> None:
        if self.persistent is None:
            raise UnpicklingError("the pickle refers to data outside itself")
        self.push(self.persistent(reference))


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    """Group keys with values, refusing keys whose hash could recurse without bound."""
    if len(items) % 2:
        raise UnpicklingError("the pickle sets a key without a value")
    for key in items[::2]:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, (*SCALARS, Symbol, Foreign)) for part in parts):
            raise UnpicklingError(f"the pickle uses a {type(key).__name__} as a key")
    return list(zip(items[::2], items[1::2], strict=True))


# Opcodes whose argument is the value itself: numbers, text and bytes, but no globals, memo indices or extensions.
_LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
)
_MARGINALIA = frozenset(("PROTO", "FRAME", "STOP"))
_ACTIONS: Mapping[str, Callable[[_Machine], Any]] = {
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "EMPTY_LIST": lambda m: m.push([]),
    "EMPTY_DICT": lambda m: m.push({}),
    "EMPTY_SET": lambda m: m.push([]),
    "MARK": _Machine.mark,
    "POP": _Machine.pop_any,
    "POP_MARK": _Machine.pop_mark,
    "DUP": lambda m: m.push(m.top()),
    "MEMOIZE": lambda m: m.put(len(m.memo)),
    "TUPLE": lambda m: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "FROZENSET": lambda m: m.push(m.pop_mark()),
    "LIST": lambda m: m.push(m.pop_mark()),
    "DICT": lambda m: m.push(dict(_pairs(m.pop_mark()))),
    "APPEND": lambda m: m.append_items([m.pop()]),
    "APPENDS": lambda m: m.append_items(m.pop_mark()),
    "ADDITEMS": lambda m: m.append_items(m.pop_mark()),
    "SETITEM": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    "STACK_GLOBAL": _Machine.push_named_symbol,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "OBJ": _Machine.object,
    "BUILD": _Machine.build,
    "BINPERSID": lambda m: m.load_persistent(m.pop()),
}
_ACTIONS_WITH_ARGUMENT: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda m, name: m.push_symbol(*name.split(" ", 1)),
    "INST": _Machine.instance,
    "PERSID": _Machine.load_persistent,
}
