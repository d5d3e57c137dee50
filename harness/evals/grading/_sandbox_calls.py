"""The two processes of the sandbox in talk: the tests of one call what the program of the other defines.

Standard library only. A test sees a program's function as a `Remote`; its arguments and results cross two pipes as
messages. Numbers, texts, containers and some values of the standard library arrive as plain copies, so that `==`, `<`
and arithmetic are those of the tests' process. Anything else stays where it is and arrives as a `Remote`, which can be
called, iterated, indexed and asked for attributes, and equals nothing but itself: a program that could say what its
results are equal to would grade itself.

    serve(module, requests, replies)                          in the program's process, until the tests have ended
    program = Program(replies, requests)                      in the tests' process
    program.named("add")(2, 3) == 5                           runs `add` there, compares here
"""

import builtins
import collections
import json
import os
import types
from collections.abc import Callable
from typing import Any

LONGEST = 1 << 26
"""Bytes of a message, at most."""
READ_AT_ONCE = 1 << 20
COLLECTIONS = ("Counter", "OrderedDict", "deque")
DATES = ("date", "time", "datetime")
ENDED, GARBLED = "its process has ended", "what it gave the tests cannot be read"
"""How an exchange fails."""


class Broken(BaseException):
    """The program's process has ended, or what it sends is no message; no test can go on."""


class Program:
    """The program's process, from the side of the tests."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self.broken = ""
        """How the exchange failed, else empty: a test may have caught the exception, and must not pass for that."""

    def started(self, source: str) -> str:
        """Have the program run; returns what it raised, "" where it reached its end. Raises Broken."""
        return str(self._exchange(source))

    def named(self, name: str) -> Any:
        """What the program calls `name`; raises NameError where it has no such name, and Broken."""
        return self.do("named", name)

    def imported(self, name: str) -> Any:
        """The standard library's module `name`, where the program has the name; raises as `named`."""
        self.do("has", name)
        return __import__(name)

    def do(self, verb: str, *values: Any) -> Any:
        """The result of one of `VERBS` there; raises what it raised, and Broken."""
        found = self._exchange([verb, [encoded(value, _no_reference) for value in values]])
        try:
            if found[0] == "value":
                return decoded(found[1], self._remote)
            _, name, text = found
            problem = _raised(name, text, verb)
        except Exception as problem_of_form:
            self._break(problem_of_form)
        raise problem

    def _remote(self, number: Any) -> "Remote":
        return Remote(self, int(number))

    def _exchange(self, message: Any) -> Any:
        if self.broken:
            raise Broken
        try:
            send(self._write, message)
            return receive(self._read)
        except Exception as problem:
            self._break(problem)

    def _break(self, problem: Exception) -> Any:
        self.broken = ENDED if isinstance(problem, OSError | EOFError) else GARBLED
        raise Broken from problem


class Remote:
    """An object in the program's process."""

    __slots__ = ("_number", "_program")

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """The result of a call."""
        return self._program.do("call", self, values, named)

    def __getattr__(self, name: str) -> Any:
        """The value of an attribute."""
        return self._program.do("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute there."""
        self._program.do("set attribute", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        """The value at a key."""
        return self._program.do("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set the value at a key there."""
        self._program.do("set item", self, key, value)

    def __iter__(self) -> Any:
        """An iterator over the object's values."""
        return self._program.do("iterator", self)

    def __next__(self) -> Any:
        """The iterator's next value."""
        return self._program.do("next", self)

    def __len__(self) -> int:
        """The object's length."""
        return self._program.do("length", self)

    def __bool__(self) -> bool:
        """The object's truth."""
        return self._program.do("truth", self) is True

    def __str__(self) -> str:
        """The object's text."""
        return str(self._program.do("text", self))

    # no arithmetic, order or `in` by the object's own methods: a test decides what a result is close to or equal to
    def __eq__(self, other: object) -> bool:
        """Whether both are the same object."""
        return isinstance(other, Remote) and self._number == other._number

    def __hash__(self) -> int:
        """Of the object's number."""
        return hash(self._number)


def serve(module: types.ModuleType, run: Callable[[str], str], read: int, write: int) -> None:
    """Run the source that comes first, then answer each request, until the other side ends.

    Whatever the program did to this process, it answers in messages, and only the values in them count.
    """
    objects: list[Any] = []
    numbers: dict[int, int] = {}

    def number_of(value: Any) -> int:
        if id(value) not in numbers:
            objects.append(value)  # kept, so that no other object gets its id
            numbers[id(value)] = len(objects) - 1
        return numbers[id(value)]

    def named(name: str) -> Any:
        if name in module.__dict__:
            return module.__dict__[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise NameError(f"name {name!r} is not defined")

    verbs: dict[str, Callable[..., Any]] = {
        "named": named,
        "has": lambda name: named(name) is None,
        "call": lambda function, values, named: function(*values, **named),
        "attribute": getattr,
        "set attribute": setattr,
        "item": lambda value, key: value[key],
        "set item": lambda value, key, new: value.__setitem__(key, new),
        "iterator": iter,
        "next": next,
        "length": len,
        "truth": bool,
        "text": str,
    }
    send(write, run(receive(read)))
    while True:
        verb, values = receive(read)
        try:
            result = verbs[verb](*(decoded(value, objects.__getitem__) for value in values))
            reply = ["value", encoded(result, number_of)]
        except BaseException as problem:
            reply = ["raised", *described(problem)]
        send(write, reply)


def described(problem: BaseException) -> tuple[str, str]:
    """An exception's type and text; an exception may fail to have a text."""
    try:
        return type(problem).__name__, str(problem)
    except BaseException:
        return type(problem).__name__, ""


def encoded(value: Any, number_of: Callable[[Any], int]) -> Any:
    """A value as JSON: itself, or a pair of kind and content; of an object that has no form here, its number.

    Raises RecursionError for a value that holds itself.
    """
    if value is None or isinstance(value, bool):
        return value
    kind = type(value)
    if isinstance(value, int):
        # decimal digits are limited to 4,300, hexadecimal ones are not
        return int(value) if abs(value) < 2**63 else ["int", hex(value)]
    if isinstance(value, float | str):
        return float(value) if isinstance(value, float) else str.__str__(value)
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytearray" if isinstance(value, bytearray) else "bytes", value.hex()]
    if isinstance(value, range):
        return ["range", [encoded(part, number_of) for part in (value.start, value.stop, value.step)]]

    def parts(values: Any) -> list[Any]:
        return [encoded(part, number_of) for part in values]

    if isinstance(value, Remote):
        return ["object", value._number]
    if isinstance(value, type | types.BuiltinFunctionType):
        name = str(getattr(value, "__name__", ""))
        if getattr(builtins, name, None) is value:
            return ["builtin", name]
    if isinstance(value, dict):
        name = kind.__name__ if kind.__module__ == "collections" and kind.__name__ in COLLECTIONS else "dict"
        return [name, [parts(pair) for pair in value.items()]]
    for base in (list, tuple, set, frozenset, collections.deque):
        if isinstance(value, base):
            return [base.__name__, parts(value)]
    for name, view in (("keys", type({}.keys())), ("values", type({}.values())), ("items", type({}.items()))):
        if kind is view:
            return [name, parts(value)]
    if kind.__module__ == "numpy":
        return encoded(value.item(), number_of) if value.ndim == 0 else ["array", [value.dtype.str, parts(value)]]
    if kind.__module__ == "fractions":
        return ["fraction", parts([value.numerator, value.denominator])]
    if kind.__module__ == "decimal" and kind.__name__ == "Decimal":
        return ["decimal", str(value)]
    if kind.__module__ == "datetime" and kind.__name__ in DATES:
        return [kind.__name__, value.isoformat()]
    if kind.__module__ == "datetime" and kind.__name__ == "timedelta":
        return ["timedelta", [value.days, value.seconds, value.microseconds]]
    return ["object", number_of(value)]


def decoded(value: Any, object_of: Callable[[Any], Any]) -> Any:
    """The value of a form that `encoded` made; raises ValueError, TypeError or such for anything else."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "object":
        return object_of(content)
    if kind == "builtin":
        return getattr(builtins, content)
    if kind == "int":
        return int(content, 16)
    if kind == "complex":
        return complex(*content)
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(content)
    if kind == "decimal":
        from decimal import Decimal

        return Decimal(content)
    if kind in DATES or kind == "timedelta":
        import datetime

        return datetime.timedelta(*content) if kind == "timedelta" else getattr(datetime, kind).fromisoformat(content)
    if kind == "array":
        import numpy

        dtype, rows = content
        if numpy.dtype(dtype).kind not in "biufcUS":
            raise ValueError(dtype)
        return numpy.array([decoded(row, object_of) for row in rows], dtype=dtype)
    if kind in ("dict", "Counter", "OrderedDict"):
        pairs = [(decoded(key, object_of), decoded(one, object_of)) for key, one in content]
        return dict(pairs) if kind == "dict" else getattr(collections, kind)(dict(pairs))
    parts = [decoded(part, object_of) for part in content]
    if kind == "fraction":
        from fractions import Fraction

        return Fraction(*parts)
    makers: dict[str, Callable[[list[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "deque": collections.deque,
        "range": lambda ends: range(*ends),
        "keys": lambda keys: dict.fromkeys(keys).keys(),
        "values": lambda values: dict(enumerate(values)).values(),
        "items": lambda pairs: dict(pairs).items(),
    }
    return makers[kind](parts)


def send(pipe: int, message: Any) -> None:
    """Write a message: the length of its JSON in 8 bytes, then that. Raises OSError and ValueError."""
    text = json.dumps(message).encode()
    rest = memoryview(len(text).to_bytes(8, "big") + text)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def receive(pipe: int) -> Any:
    """The next message; raises EOFError where there is none, ValueError where it is none or too long."""
    length = int.from_bytes(_bytes(pipe, 8), "big")
    if length > LONGEST:
        raise ValueError("too long")
    return json.loads(_bytes(pipe, length))


def _bytes(pipe: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        part = os.read(pipe, min(count - len(found), READ_AT_ONCE))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def _no_reference(value: Any) -> int:
    raise TypeError(f"a test gives the program a {type(value).__name__}, which cannot be sent")


def _raised(name: Any, text: Any, verb: str) -> BaseException:
    """An exception of the same name and text as the one that the program raised."""
    assert isinstance(name, str) and isinstance(text, str) and name.isidentifier()
    # only an iterator may end a loop of the tests
    if name in ("StopIteration", "StopAsyncIteration") and verb != "next":
        name, text = "RuntimeError", f"the program raised {name}"
    base = getattr(builtins, name, Exception)
    base = base if isinstance(base, type) and issubclass(base, BaseException) else Exception
    try:
        return type(name, (base,), {"__str__": lambda _: text})()
    except TypeError:  # some need arguments
        return type(name, (Exception,), {"__str__": lambda _: text})()
