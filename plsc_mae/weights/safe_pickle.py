"""Decodes pickles without executing them; every pickle that the package reads is decoded here.

The opcodes are interpreted one by one. Containers and plain values are built. A global becomes a `Symbol`. An object
made from it becomes an inert `Foreign` object that only stores its arguments and state, unless the caller's allow-list
has a builder for it. Nothing is imported and no attribute of a real object is set, so a file can neither run code nor
modify the process.
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
VALUE_BYTES = 64  # approximate memory of a plain value
MAX_NAME = 1000  # characters of a global's dotted name
MAX_STEPS = 4_000_000  # opcodes of a pickle; weight files have thousands, because a few long ones contain most bytes
# Weights hardly compress. A file whose content would take more memory than 64 times its size plus 16 MiB is rejected
# as a decompression bomb.
MAX_INFLATION = 64
INFLATION_ALLOWANCE = 16 << 20

# Python 2 and NumPy 2 have other names for these modules; allow-lists use the names on the right.
SYNONYMS = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}


class Budget:
    """Memory budget for the content of a file.

    It is charged while reading, because a few bytes of a file can request any amount of memory.

    Args:
        file_size: size in bytes of the file, or of all files of a folder; the budget is a multiple of it plus an
            allowance.

    Attributes:
        left: remaining bytes.
    """

    def __init__(self, file_size: int) -> None:
        self.left = file_size * MAX_INFLATION + INFLATION_ALLOWANCE

    def spend(self, nbytes: int) -> None:
        """Charge `nbytes`.

        Raises:
            UnpicklingError: the budget is exceeded.
        """
        self.left -= nbytes
        if self.left < 0:
            raise UnpicklingError("its content would take far more memory than the file")


@dataclass(frozen=True)
class Symbol:
    """Name of a class, function or constant in the file; it is never imported."""

    path: str


class Foreign:
    """Inert replacement for an object of another program; it only records what the pickle does with the object.

    Attributes:
        path: dotted name of the class or function that creates it.
        args: positional arguments with which it is created.
        state: state that the pickle sets afterwards, such as its `__dict__`; None without one.
        entries: items set on it, as on a subclass of dict.
        elements: items appended to it, as on a subclass of list.
    """

    def __init__(self, path: str, args: Iterable[Any] = ()) -> None:
        self.path = path
        self.args = tuple(args)
        self.state: Any = None
        self.entries: dict[Any, Any] = {}
        self.elements: list[Any] = []

    def build(self, state: Any) -> None:
        """Store the state that the pickle sets; a subclass may build a value from it."""
        self.state = state

    def describe(self) -> str:
        """Return the object as text with up to four arguments, such as `torch.device('cuda', 0)`."""
        shown = [reprlib.repr(arg) if isinstance(arg, str | int | float) else "..." for arg in self.args[:4]]
        return f"{self.path}({', '.join(shown)})"


def decode(
    stream: IO[bytes], builders: Builders, budget: Budget, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Decode one pickle and leave the stream positioned after it.

    Args:
        stream: stream positioned at the pickle; bytes after the pickle are not read.
        builders: {dotted name of a global: function that is called instead of the global}.
        budget: budget of the whole file; calls and states are charged, because a builder may copy their arguments.
        persistent: resolves persistent ids, which torch uses for storages; None rejects them.

    Returns:
        Plain containers and scalars (sets become lists), `Symbol` and `Foreign` objects, and results of the builders
        and of `persistent`.

    Raises:
        UnpicklingError, ValueError and others (`reader.DAMAGE`): the pickle is malformed, truncated, too long or over
            budget, or uses an opcode that is not allowed in a weight file.
    """
    machine = _Machine(builders, budget, persistent)
    for step, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if step == MAX_STEPS:
            raise UnpicklingError(f"the pickle has more than {MAX_STEPS} opcodes")
        name = opcode.name
        if name in _LITERALS:
            machine.stack.append(arg)
        elif name in _ACTIONS:
            _ACTIONS[name](machine)
        elif name in _ACTIONS_WITH_ARGUMENT:
            _ACTIONS_WITH_ARGUMENT[name](machine, arg)
        elif name not in _IGNORED:
            raise UnpicklingError(f"the pickle opcode {name} is not allowed in a weight file")
    return machine.pop()


class _Machine:
    """Pickle virtual machine: the stack, the stacks saved by MARK, and the memo."""

    def __init__(self, builders: Builders, budget: Budget, persistent: Callable[[Any], Any] | None) -> None:
        self.builders = builders
        self.budget = budget
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
            raise UnpicklingError("the pickle reads from an empty stack")
        return self.stack[-1]

    # Groups and memo

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise UnpicklingError("the pickle closes a group that it never opened")
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
            raise UnpicklingError(f"the pickle reads memo entry {index}, which it never stored")
        self.push(self.memo[index])

    # Containers

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise UnpicklingError("the pickle reads from an empty stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append_items(self, items: list[Any]) -> None:
        """Extend the list, or the `Foreign` object, on top of the stack."""
        target = self.top()
        if isinstance(target, Foreign):
            target = target.elements
        if not isinstance(target, list):
            raise UnpicklingError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Update the dict, or the `Foreign` object, on top of the stack with alternating keys and values."""
        target = self.top()
        if isinstance(target, Foreign):
            target = target.entries
        if not isinstance(target, dict):
            raise UnpicklingError(f"the pickle sets items of a {type(target).__name__}")
        target.update(_pairs(items))

    # Objects

    def push_symbol(self, module: Any, name: Any) -> None:
        """Push the symbol of a global; nothing is imported."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnpicklingError("the name of a global in the pickle is not a string")
        if len(module) + len(name) > MAX_NAME:
            raise UnpicklingError(
                f"the name of a global in the pickle has {len(module) + len(name)} characters, the limit is {MAX_NAME}"
            )
        self.push(Symbol(f"{SYNONYMS.get(module, module)}.{name}"))

    def push_named_symbol(self) -> None:
        name = self.pop()
        self.push_symbol(self.pop(), name)

    def call(self, function: Any, args: Any) -> None:
        """Push the result of the builder of `function`, or a `Foreign` that records the call if there is no builder."""
        if not (isinstance(function, Symbol | Foreign) and isinstance(args, tuple | list)):
            raise UnpicklingError("the pickle calls something that is not a function")
        self.charge(args)
        builder = self.builders.get(function.path) if isinstance(function, Symbol) else None
        try:
            self.push(builder(*args) if builder else Foreign(function.path, args))
        except TypeError as error:
            raise UnpicklingError(f"the pickle calls {function.path} with wrong arguments") from error

    def charge(self, args: Iterable[Any]) -> None:
        """Charge the budget for a new object and a copy of each of its arguments."""
        self.budget.spend(4 * VALUE_BYTES)
        for arg in args:
            held = len(arg) if isinstance(arg, (str, bytes, bytearray, list, tuple, dict)) else 0
            self.budget.spend(VALUE_BYTES + (held if isinstance(arg, (str, bytes, bytearray)) else VALUE_BYTES * held))

    def reduce(self) -> None:
        args = self.pop()
        self.call(self.pop(), args)

    def new_with_keywords(self) -> None:
        self.pop()  # only foreign classes take keywords, and `Foreign` does not store them
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
            self.charge(state if isinstance(state, tuple) else ())
            target.build(state)  # the state of plain containers, such as a state dict's `_metadata`, is not needed

    def load_persistent(self, reference: Any) -> None:
        if self.persistent is None:
            raise UnpicklingError("the pickle refers to data outside of it")
        self.push(self.persistent(reference))


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    """Pair alternating keys and values, with the keys as `_key` returns them."""
    if len(items) % 2:
        raise UnpicklingError("the pickle sets a key without a value")
    return [(_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]


def _key(key: Any) -> Any:
    """Return a key that is safe in a dict: a tuple of plain values becomes text, and other unsafe keys are refused.

    The hash of an unsafe key could recurse without bound, or be chosen to collide with those of other keys, which makes
    a dict slow.
    """
    if isinstance(key, tuple) and all(isinstance(part, SCALARS) for part in key):
        return str(key)
    if not isinstance(key, (str, bytes, int, float, type(None), Symbol, Foreign)):
        raise UnpicklingError(f"the pickle uses a {type(key).__name__} as a key")
    if isinstance(key, int) and key.bit_length() > 64:
        raise UnpicklingError(f"the pickle uses an integer of {key.bit_length()} bits as a key, the limit is 64")
    return key


# Opcodes whose argument is the value itself: numbers, text and bytes, but not globals, memo indices or extensions.
_LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
)
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
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
