"""A small closed expression language: `asr.confidence > 0.8 and "rain" in lower(asr.text)`.

The syntax is a part of Python's; the meaning is ours. Names are looked up in the values handed in,
`a.b` and `a["b"]` look up a key of an object (null where there is none), and a few functions exist.
There are no attributes, no calls of anything else, no assignment and no loop, and every
evaluation has a budget of steps and of size, so an expression can neither reach out nor run away.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from schemas.errors import InvalidArgument


CHARS_MAX = 1_000
DEPTH_MAX = 32
STEPS_MAX = 10_000
SIZE_MAX = 64 * 1024
"""Characters of a text or items of a list that an expression may make."""
NUMBER_BITS_MAX = 256
DIGITS_MAX = 100
"""Digits that a number is rounded to."""

Values = Mapping[str, Any]
_NAMES = {"null": None, "true": True, "false": False}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, box: item in box,
    ast.NotIn: lambda item, box: item not in box,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def _joined(items: list[Any], separator: str = "") -> int:
    """Return how long the items are when they are joined."""
    return sum(_length(item) for item in items) + len(separator) * len(items)


def _round(value: float, digits: int = 0) -> float:
    """Return a number rounded to so many digits after the point, half to even."""
    if not -DIGITS_MAX <= digits <= DIGITS_MAX:
        raise InvalidArgument(f"round() takes -{DIGITS_MAX} to {DIGITS_MAX} digits")
    return round(value, digits) if digits else round(value)


def _range(*bounds: int) -> list[int]:
    numbers = range(*bounds)
    if len(numbers) > STEPS_MAX:
        raise InvalidArgument(f"range() gives at most {STEPS_MAX} numbers")
    return list(numbers)


def _number(value: Any) -> float:
    """Return the number a text spells."""
    number = float(value)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _coalesce(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "coalesce": _coalesce,
    "ends_with": str.endswith,
    "join": lambda items, separator="": str.join(separator, items),
    "keys": lambda box: list(dict.keys(box)),
    "len": len,
    "lower": str.lower,
    "max": max,
    "min": min,
    "number": _number,
    "range": _range,
    "replace": str.replace,
    "round": _round,
    "sorted": sorted,
    "split": lambda text, separator=None: str.split(text, separator),
    "starts_with": str.startswith,
    "str": lambda value: value if isinstance(value, str) else _spelled(value),
    "strip": str.strip,
    "sum": sum,
    "upper": str.upper,
    "values": lambda box: list(dict.values(box)),
}


@dataclass(frozen=True)
class Expression:
    """An expression that was read and found well-formed."""

    text: str
    tree: ast.expr

    @cached_property
    def names(self) -> frozenset[str]:
        """The names it looks up."""
        return frozenset(
            part.id
            for part in ast.walk(self.tree)
            if isinstance(part, ast.Name) and part.id not in _NAMES and part.id not in FUNCTIONS
        )

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield each (name, key) it looks up as `name.key` or `name["key"]`."""
        for part in ast.walk(self.tree):
            match part:
                case ast.Attribute(value=ast.Name(id=name), attr=key):
                    yield name, key
                case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))):
                    yield name, key
                case _:
                    pass  # no key that could be known before it is evaluated

    def uses_whole(self, name: str) -> bool:
        """Tell whether it uses a name other than by a key that is written in it."""
        uses = sum(isinstance(part, ast.Name) and part.id == name for part in ast.walk(self.tree))
        return uses > sum(found == name for found, _ in self.paths())

    def evaluate(self, values: Values) -> Any:
        """Return its value.

        Args:
            values: What the names stand for: JSON types, lists and mappings.

        Raises:
            InvalidArgument: It cannot be computed from these values; says where.
        """
        return _Evaluation(values).of(self.tree)


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        InvalidArgument: It is malformed, or uses what the language does not have.
    """
    if len(text) > CHARS_MAX:
        raise InvalidArgument(f"an expression has at most {CHARS_MAX} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        message = getattr(error, "msg", "it nests too deep")
        raise InvalidArgument(f"not an expression: {message}: {text[:80]}") from error
    _check(tree, 0)
    return Expression(text, tree)


_FORMS: dict[type[ast.AST], Callable[[Any], bool]] = {
    ast.Constant: lambda part: (
        isinstance(part.value, bool | float | str | None)
        or (isinstance(part.value, int) and part.value.bit_length() <= NUMBER_BITS_MAX)
    ),
    ast.BinOp: lambda part: type(part.op) in _ARITHMETIC,
    ast.Compare: lambda part: all(type(op) in _COMPARISONS for op in part.ops),
    ast.UnaryOp: lambda part: type(part.op) in _UNARY,
    ast.Call: lambda part: (
        isinstance(part.func, ast.Name) and part.func.id in FUNCTIONS and not part.keywords
    ),
    ast.Dict: lambda part: None not in part.keys,
    ast.Slice: lambda part: part.step is None,
    **dict.fromkeys(
        (ast.Name, ast.Attribute, ast.Subscript, ast.BoolOp, ast.IfExp, ast.List, ast.Tuple),
        lambda _: True,
    ),
}
"""The forms the language has, and what each may hold."""


def _check(tree: ast.AST, depth: int) -> None:
    """Refuse what the language does not have."""
    if depth > DEPTH_MAX:
        raise InvalidArgument(f"the expression nests deeper than {DEPTH_MAX} levels")
    if not _FORMS.get(type(tree), lambda _: False)(tree):
        raise InvalidArgument(f"an expression cannot use `{_source(tree)}`")
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.expr):
            _check(child, depth + 1)


_MISTAKES = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError)


class _Evaluation:
    """One evaluation: a walk over the tree with a budget."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._left = STEPS_MAX

    def of(self, tree: ast.expr) -> Any:
        """Return the value of a part."""
        self._spend(1)
        try:
            value = self._value(tree)
        except _MISTAKES as error:
            raise InvalidArgument(f"`{_source(tree)}`: {_reason(error)}") from error
        return value

    def _value(self, tree: ast.expr) -> Any:  # noqa: C901, PLR0911, PLR0912 - one case for each form
        match tree:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._name(name)
            case ast.Attribute(value=box, attr=key):
                return _item(self.of(box), key)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._call(name, [self.of(arg) for arg in args])
            case ast.BinOp(left=left, op=sign, right=right):
                return self._arithmetic(type(sign), self.of(left), self.of(right))
            case ast.Subscript(value=box, slice=key):
                return self._subscript(box, key)
            case ast.BoolOp(op=op, values=parts):
                return self._bool(isinstance(op, ast.And), parts)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.of(body) if self.of(test) else self.of(orelse)
            case ast.UnaryOp(op=sign, operand=operand):
                return _UNARY[type(sign)](self.of(operand))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                return self._compare(left, ops, rights)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.of(item) for item in items]
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {self.of(key): self.of(value) for key, value in pairs if key is not None}
            case _:
                raise TypeError("not a part of the language")

    def _name(self, name: str) -> Any:
        if name in _NAMES:
            return _NAMES[name]
        if name not in self._values:
            known = ", ".join(sorted(self._values))
            raise InvalidArgument(f"there is no '{name}' here; there are {known}")
        return self._values[name]

    def _bool(self, is_and: bool, parts: list[ast.expr]) -> Any:
        value: Any = is_and
        for part in parts:
            value = self.of(part)
            if bool(value) != is_and:
                return value
        return value

    def _compare(self, left: ast.expr, ops: list[ast.cmpop], rights: list[ast.expr]) -> bool:
        value = self.of(left)
        for op, right in zip(ops, rights, strict=True):
            other = self.of(right)
            self._spend(_length(other) // 64 + _length(value) // 64)
            if not _COMPARISONS[type(op)](value, other):
                return False
            value = other
        return True

    def _subscript(self, box: ast.expr, key: ast.expr) -> Any:
        if isinstance(key, ast.Slice):
            bounds = [None if part is None else self.of(part) for part in (key.lower, key.upper)]
            return self._made(self.of(box)[slice(*bounds)])
        return _item(self.of(box), self.of(key))

    def _arithmetic(self, sign: type[ast.operator], left: Any, right: Any) -> Any:
        joins = sign is ast.Add and type(left) is type(right) and isinstance(left, str | list)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if not joins and not numbers:
            raise TypeError(f"{_kind(left)} and {_kind(right)} do not go together")
        if joins and _length(left) + _length(right) > SIZE_MAX:
            raise InvalidArgument(f"an expression makes at most {SIZE_MAX} characters or items")
        value = _ARITHMETIC[sign](left, right)
        if isinstance(value, int) and value.bit_length() > NUMBER_BITS_MAX:
            raise InvalidArgument(f"a number has at most {NUMBER_BITS_MAX} bits")
        return self._made(value)

    def _call(self, name: str, args: list[Any]) -> Any:
        self._spend(sum(_length(arg) // 16 for arg in args))
        if name == "replace" and all(isinstance(arg, str) for arg in args):
            text, old, new = args
            if len(text) + text.count(old) * len(new) > SIZE_MAX:
                raise InvalidArgument(f"an expression makes at most {SIZE_MAX} characters")
        if name == "join" and _joined(*args) > SIZE_MAX:
            raise InvalidArgument(f"an expression makes at most {SIZE_MAX} characters")
        return self._made(FUNCTIONS[name](*args))

    def _made(self, value: Any) -> Any:
        self._spend(_length(value) // 16)
        if isinstance(value, float) and not math.isfinite(value):
            raise OverflowError("the number is too large")
        return value

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise InvalidArgument(f"the expression takes more than {STEPS_MAX} steps")


def _item(box: Any, key: Any) -> Any:
    """Return an item of a list or an object; null where an object has none."""
    if box is None:
        return None
    if isinstance(box, Mapping):
        return box.get(key)
    if isinstance(box, list | tuple | str) and isinstance(key, int):
        return box[key] if -len(box) <= key < len(box) else None
    raise TypeError(f"{_kind(box)} has no '{key}'")


def _length(value: Any) -> int:
    if isinstance(value, int | float):
        return 0  # most are: asking what a mapping is takes longer
    return len(value) if isinstance(value, str | list | tuple | Mapping) else 0


def _spelled(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case _:
            raise TypeError(f"{_kind(value)} is no text or number")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"


def _reason(error: Exception) -> str:
    text = str(error)
    return text.replace("NoneType", "null").replace("'dict'", "an object")


def _source(tree: ast.AST) -> str:
    try:
        return ast.unparse(tree)[:80]
    except (ValueError, RecursionError):
        return type(tree).__name__
