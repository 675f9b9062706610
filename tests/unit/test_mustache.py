"""Templates: the subset of Mustache, its errors and its limits."""

from typing import Any

import pytest

from schemas import mustache
from schemas.errors import InvalidArgument
from schemas.values import Binary, BlobRef, Tensor


@pytest.mark.parametrize(
    ("expected", "template", "context"),
    [
        ("Hello Ada!", "Hello {{name}}!", {"name": "Ada"}),
        ("<b> & <b>", "{{{x}}} & {{& x }}", {"x": "<b>"}),
        ("7", "{{a.b.c}}", {"a": {"b": {"c": 7}}}),
        ("second", "{{items.1}}", {"items": ["first", "second"]}),
        ("[]", "[{{missing}}{{a.b.c}}{{items.9}}]", {"a": {}, "items": []}),
        ("", "{{! nothing to see }}", {}),
        ("true 1.5 false", "{{a}} {{b}} {{c}}", {"a": True, "b": 1.5, "c": False}),
        ('{"k":[1,null]}', "{{a}}", {"a": {"k": [1, None]}}),
        ("é", "{{a}}", {"a": "é"}),
        ("", "", {}),
    ],
)
def test_variables(expected: str, template: str, context: dict[str, Any]) -> None:
    """A variable prints its value as text, and nothing where there is none."""
    assert expected == mustache.render(template, context)


@pytest.mark.parametrize(
    ("expected", "template", "context"),
    [
        ("a,b,", "{{#l}}{{.}},{{/l}}", {"l": ["a", "b"]}),
        ("1-x 2-x ", "{{#l}}{{n}}-{{y}} {{/l}}", {"l": [{"n": 1}, {"n": 2}], "y": "x"}),
        ("yes", "{{#ok}}yes{{/ok}}{{^ok}}no{{/ok}}", {"ok": True}),
        ("no", "{{#ok}}yes{{/ok}}{{^ok}}no{{/ok}}", {}),
        ("no", "{{#l}}yes{{/l}}{{^l}}no{{/l}}", {"l": []}),
        ("Ada", "{{#user}}{{name}}{{/user}}", {"user": {"name": "Ada"}}),
        ("inner outer", "{{#a}}{{x}}{{/a}} {{x}}", {"x": "outer", "a": {"x": "inner"}}),
        ("deep", "{{#a.b}}{{c}}{{/a.b}}", {"a": {"b": {"c": "deep"}}}),
        ("12;3;", "{{#l}}{{#.}}{{.}}{{/.}};{{/l}}", {"l": [[1, 2], [3]]}),
    ],
)
def test_sections(expected: str, template: str, context: dict[str, Any]) -> None:
    """A section repeats over a list, enters a dictionary, and is left out when empty."""
    assert expected == mustache.render(template, context)


def test_standalone_tags_leave_no_blank_line() -> None:
    """A section tag or comment alone on its line takes the whole line with it."""
    template = "List:\n{{! items }}\n{{#l}}\n  - {{.}}\n  {{/l}}\nEnd\n"
    assert "List:\n  - a\n  - b\nEnd\n" == mustache.render(template, {"l": ["a", "b"]})


def test_a_variable_alone_on_its_line_keeps_the_line() -> None:
    """Only section tags and comments take their line with them."""
    assert "a\n  b\nc\n" == mustache.render("a\n  {{x}}\nc\n", {"x": "b"})


@pytest.mark.parametrize(
    ("expected", "template"),
    [
        ("line 1, column 3: the tag is not closed by }}", "a {{b"),
        ("line 1, column 1: the tag is not closed by }}}", "{{{b}}"),
        ("line 2, column 2: the section 'x' is not closed", "\n {{#x}}"),
        ("line 1, column 1: 'x' is closed here but was never opened", "{{/x}}"),
        ("line 1, column 7: 'y' is closed here, but 'x' is open", "{{#x}}{{/y}}"),
        ("line 1, column 1: partials are not supported", "{{> other}}"),
        ("line 1, column 1: other delimiters are not supported", "{{=<% %>=}}"),
        ("line 1, column 1: '' is not a name such as intent or items.0.title", "{{}}"),
        ("line 1, column 1: 'a()' is not a name such as intent or items.0.title", "{{a()}}"),
        ("line 1, column 1: 'a..b' is not a name such as intent or items.0.title", "{{a..b}}"),
    ],
)
def test_errors_name_line_and_column(expected: str, template: str) -> None:
    """A template that cannot be parsed is refused at deploy, with its place."""
    with pytest.raises(InvalidArgument) as caught:
        mustache.check(template)
    assert (expected, "template") == (caught.value.message, caught.value.field)


def test_attributes_are_never_read() -> None:
    """Only keys and indexes are followed, whatever the context holds."""
    context = {"a": {"k": 1}, "l": [1], "s": "text", "b": Binary(media_type="a/b", data=b"")}
    template = "[{{a.__class__}}{{a.keys}}{{l.append}}{{l.-1}}{{s.upper}}{{s.0}}{{b.data}}]"
    assert "[]" == mustache.render(template, context)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("[audio/wav, 3 bytes]", Binary(media_type="audio/wav", data=b"abc")),
        ("[audio/wav, 3 bytes]", {"$binary": {"media_type": "audio/wav", "data": b"abc"}}),
        ("[image/png, 9 bytes]", BlobRef(media_type="image/png", size_bytes=9, sha256="0" * 64)),
        ("[tensor FP32 2x1]", Tensor(datatype="FP32", shape=(2, 1), data=bytes(8))),
        ("[bytes, 2 bytes]", b"ab"),
        ('{"a":["[a/b, 1 bytes]"]}', {"a": [Binary(media_type="a/b", data=b"x")]}),
    ],
)
def test_bytes_render_as_a_description(expected: str, value: Any) -> None:
    """Bytes never reach the text; their kind and size do."""
    assert expected == mustache.render("{{v}}", {"v": value})


def test_steps_are_bounded() -> None:
    """Nested loops stop at the step limit."""
    ten = list(range(10))
    template = "{{#l}}{{#l}}{{#l}}{{#l}}{{.}}{{/l}}{{/l}}{{/l}}{{/l}}"
    with pytest.raises(InvalidArgument, match="more than 10000 steps"):
        mustache.render(template, {"l": ten})


def test_output_is_bounded() -> None:
    """The text stops growing at the character limit."""
    context = {"l": [1, 2], "s": "x" * (mustache.OUTPUT_CHARS_MAX // 2 + 1)}
    with pytest.raises(InvalidArgument, match="longer than 262144 characters"):
        mustache.render("{{#l}}{{s}}{{/l}}", context)


def test_nesting_is_bounded() -> None:
    """Sections nest sixteen deep and no deeper."""
    depth = mustache.NESTING_MAX
    assert "" == mustache.render("{{#a}}" * depth + "{{/a}}" * depth, {})
    with pytest.raises(InvalidArgument, match="nest deeper than 16"):
        mustache.check("{{#a}}" * (depth + 1) + "{{/a}}" * (depth + 1))


def test_value_depth_is_bounded() -> None:
    """A value nested past the limit is refused, never a recursion error."""
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    with pytest.raises(InvalidArgument, match="nests deeper than 32"):
        mustache.render("{{v}}", {"v": value})
