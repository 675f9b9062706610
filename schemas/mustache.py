"""Logic-less templates: a bounded subset of Mustache that renders plain text (ADR-0008).

    {{a.b}}  {{{a}}}  {{&a}}     a value; the three forms are the same, text needs no escaping
    {{.}}                        the current item of a list
    {{#x}}..{{/x}}               once per item of a list, or once when `x` is not empty
    {{^x}}..{{/x}}               when `x` is missing or empty
    {{! words }}                 a comment

A name walks dictionary keys and list indexes (`items.0.title`) and nothing else: no attribute is
ever read, nothing is ever called. The first part of a name is looked up in the innermost section
that has it. Missing values render as nothing; empty means missing, null, false, 0, "", [] or {}.
A section tag or comment alone on its line leaves no blank line behind.

Source: the tag syntax of mustache(5); partials, lambdas and set-delimiter tags are refused.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from schemas.errors import InvalidArgument
from schemas.values import from_wire, special_key


OUTPUT_CHARS_MAX = 256 * 1024
STEPS_MAX = 10_000
NESTING_MAX = 16
VALUE_DEPTH_MAX = 32

_NAME = re.compile(r"\.|[\w-]+(\.[\w-]+)*")
_REFUSED = {">": "partials", "=": "other delimiters"}
_MISSING = object()


@dataclass(frozen=True)
class Variable:
    """A value to print: the parts of its name; none means the current item."""

    path: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part that is repeated, or left out."""

    path: tuple[str, ...]
    inverted: bool
    parts: "tuple[Part, ...]"


Part = str | Variable | Section


@dataclass(frozen=True)
class Template:
    """A parsed template; see `parse`."""

    parts: tuple[Part, ...]

    def render(self, context: Mapping[str, Any]) -> str:
        """Fill the template in.

        Args:
            context: Values by name: JSON, or the special values of `schemas.values`, which
                render as a short description such as `[audio/wav, 1234 bytes]`.

        Raises:
            InvalidArgument: The result would pass one of the limits of this module.
        """
        output = _Output()
        _render(self.parts, (context,), output)
        return "".join(output.pieces)

    def paths(self) -> Iterator[tuple[str, ...]]:
        """Yield the parts of each name it looks up; none stands for all there is."""
        for part in self.parts:
            if isinstance(part, Variable):
                yield part.path
            elif isinstance(part, Section):
                yield part.path
                yield from (path for path in Template(part.parts).paths() if path)


def render(template: str, context: Mapping[str, Any]) -> str:
    """Parse `template` and fill it in; see `Template.render`."""
    return parse(template).render(context)


def check(template: str) -> None:
    """Refuse a template that could not be rendered, when it is deployed.

    Raises:
        InvalidArgument: Names the line and column.
    """
    parse(template)


def parse(text: str) -> Template:
    """Parse a template.

    Raises:
        InvalidArgument: A tag is malformed, not closed, or not part of the subset; names the
            line and column, both from 1.
    """
    parser = _Parser(text)
    while parser.step():
        pass
    return Template(parts=parser.finish())


@dataclass
class _Open:
    name: str
    inverted: bool
    start: int
    parts: list[Part] = field(default_factory=list)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.stack = [_Open(name="", inverted=False, start=0)]

    def step(self) -> bool:
        """Take the text up to the next tag, and the tag; False at the end."""
        start = self.text.find("{{", self.position)
        if start < 0:
            self._literal(self.position, len(self.text))
            return False
        close = "}}}" if self.text.startswith("{{{", start) else "}}"
        inner = start + len(close)
        end = self.text.find(close, inner)
        if end < 0:
            raise self._error(start, f"the tag is not closed by {close}")
        kind, name = self._tag(start, self.text[inner:end].strip(), raw=close == "}}}")
        self._place(start, end + len(close), standalone=kind != "")
        self._apply(kind, name, start)
        return True

    def finish(self) -> tuple[Part, ...]:
        if len(self.stack) > 1:
            unclosed = self.stack[-1]
            raise self._error(unclosed.start, f"the section '{unclosed.name}' is not closed")
        return tuple(self.stack[0].parts)

    def _tag(self, start: int, content: str, *, raw: bool) -> tuple[str, str]:
        """Split a tag into its kind (`#^/!` or empty for a variable) and its name."""
        kind = "" if raw else content[:1]
        if kind == "!":
            return kind, ""
        if kind in _REFUSED:
            raise self._error(start, f"{_REFUSED[kind]} are not supported")
        if kind and kind in "#^/&":
            content = content[1:].strip()
        if not _NAME.fullmatch(content):
            raise self._error(start, f"'{content}' is not a name such as intent or items.0.title")
        return (kind, content) if kind and kind in "#^/" else ("", content)

    def _place(self, start: int, end: int, *, standalone: bool) -> None:
        """Keep the literal before a tag, without the tag's own line when it stands alone."""
        line_start = self.text.rfind("\n", 0, start) + 1
        line_end = self.text.find("\n", end)
        line_end = len(self.text) if line_end < 0 else line_end + 1
        around = self.text[line_start:start] + self.text[end:line_end]
        if standalone and not around.strip():
            start, end = line_start, line_end
        self._literal(self.position, start)
        self.position = end

    def _literal(self, start: int, end: int) -> None:
        if start < end:
            self.stack[-1].parts.append(self.text[start:end])

    def _apply(self, kind: str, name: str, start: int) -> None:
        match kind:
            case "":
                self.stack[-1].parts.append(Variable(_path(name)))
            case "/":
                self._close(name, start)
            case "#" | "^":
                if len(self.stack) > NESTING_MAX:
                    raise self._error(start, f"sections nest deeper than {NESTING_MAX}")
                self.stack.append(_Open(name=name, inverted=kind == "^", start=start))
            case _:
                pass  # a comment leaves nothing

    def _close(self, name: str, start: int) -> None:
        if len(self.stack) == 1:
            raise self._error(start, f"'{name}' is closed here but was never opened")
        section = self.stack.pop()
        if section.name != name:
            raise self._error(start, f"'{name}' is closed here, but '{section.name}' is open")
        self.stack[-1].parts.append(
            Section(_path(name), inverted=section.inverted, parts=tuple(section.parts))
        )

    def _error(self, position: int, message: str) -> InvalidArgument:
        line = self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        return InvalidArgument(f"line {line}, column {column}: {message}", field="template")


def _path(name: str) -> tuple[str, ...]:
    return () if name == "." else tuple(name.split("."))


@dataclass
class _Output:
    pieces: list[str] = field(default_factory=list)
    chars: int = 0
    steps: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise InvalidArgument(
                f"the template takes more than {STEPS_MAX} steps to render", field="template"
            )

    def add(self, piece: str) -> None:
        self.chars += len(piece)
        if self.chars > OUTPUT_CHARS_MAX:
            raise InvalidArgument(
                f"the rendered text is longer than {OUTPUT_CHARS_MAX} characters", field="template"
            )
        self.pieces.append(piece)


def _render(parts: tuple[Part, ...], stack: tuple[Any, ...], output: _Output) -> None:
    for part in parts:
        output.step()
        match part:
            case str():
                output.add(part)
            case Variable():
                output.add(_as_text(_look_up(part.path, stack)))
            case Section():
                for item in _items(part, _look_up(part.path, stack)):
                    output.step()
                    _render(part.parts, (*stack, item), output)


def _items(section: Section, value: Any) -> Sequence[Any]:
    """Return what a section runs over: one scope a pass."""
    if _is_sequence(value):
        return [{}] * (not value) if section.inverted else value
    present = value is not _MISSING and bool(value)
    if section.inverted:
        return [] if present else [{}]
    return [value] if present else []


def _look_up(path: tuple[str, ...], stack: tuple[Any, ...]) -> Any:
    if not path:
        return stack[-1]
    value: Any = _MISSING
    for scope in reversed(stack):
        value = _child(scope, path[0])
        if value is not _MISSING:
            break
    for part in path[1:]:
        value = _child(value, part)
    return value


def _child(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, _MISSING)
    if _is_sequence(value) and key.isdecimal() and len(key) < 10 and int(key) < len(value):  # noqa: PLR2004 - no index needs ten digits
        return value[int(key)]
    return _MISSING


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _as_text(value: Any) -> str:
    if value is _MISSING or value is None:
        return ""
    if isinstance(value, str):
        return value
    plain = _plain(value, 0)
    return plain if isinstance(plain, str) else _json(plain)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any, depth: int) -> Any:
    """Return JSON types only: bytes and special values become a short description."""
    if depth > VALUE_DEPTH_MAX:
        raise InvalidArgument(
            f"a value nests deeper than {VALUE_DEPTH_MAX} levels", field="template"
        )
    if isinstance(value, bytes | BaseModel) or special_key(value):
        return _describe(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if _is_sequence(value):
        return [_plain(item, depth + 1) for item in value]
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def _describe(value: Any) -> str:
    """Return `[media type, size]` for bytes, and datatype and shape for a tensor."""
    if isinstance(value, bytes):
        return f"[bytes, {len(value)} bytes]"
    special = from_wire(value)
    fields = dict(special) if isinstance(special, BaseModel) else {}
    if "shape" in fields:
        shape = "x".join(str(size) for size in fields["shape"])
        return f"[tensor {fields['datatype']} {shape}]"
    size = fields.get("size_bytes", len(fields.get("data", b"")))
    return f"[{fields.get('media_type', type(value).__name__)}, {size} bytes]"
