"""Renders one chat template: a process that is run as a file, with nothing of ours in it.

A template comes with the weights, from strangers, and is a program: jinja's sandbox keeps it from
the machine, but not from computing for ever. So this process has limits and no environment, and
whoever asks ends it when it takes too long. It is asked in lines of JSON: first
`{"template": ...}`, then `{"variables": {...}}` as often as needed.

Source: transformers.utils.chat_template_utils, whose names and filters templates are written for.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.sandbox


NEEDED = (3, 1, 6)
"""Older sandboxes have known ways out."""
_TAG = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
"""Marks what the assistant said, for training; means nothing here."""


class Refused(Exception):
    """The template does not take these variables, on purpose or not."""


def namespace_type() -> Any:
    """Return jinja's namespace, without names that lead to Python's own things."""

    def set_item(self: Any, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace keeps no '{name}'")
        jinja2.utils.Namespace.__setitem__(self, name, value)

    return type("Namespace", (jinja2.utils.Namespace,), {"__setitem__": set_item})


def environment() -> Any:
    """Return what templates of chats expect."""

    def refuse(message: object) -> None:
        raise Refused(str(message))

    def to_json(value: Any, **options: Any) -> str:
        known = ("ensure_ascii", "indent", "separators", "sort_keys")
        kept = {name: options[name] for name in known if name in options}
        return json.dumps(value, **{"ensure_ascii": False, **kept})

    def namespace(**given: Any) -> Any:
        made = namespace_type()()
        for name, value in given.items():
            made[name] = value
        return made

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = to_json
    made.globals.update(
        raise_exception=refuse,
        strftime_now=time.strftime,
        namespace=namespace,
        dict=dict,
    )
    return made


def compiled(source: str) -> Any:
    """Return a template.

    Raises:
        jinja2.TemplateError: It is none.
    """
    plain = _TAG.sub(
        lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source
    )
    return environment().from_string(plain)


def rendered(template: Any, variables: dict[str, Any], chars_max: int) -> dict[str, str]:
    """Return the text, or why there is none."""
    pieces, size = [], 0
    try:
        for piece in template.generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > chars_max:
                return {"refused": f"it makes more than {chars_max} characters of them"}
    except Refused as error:
        return {"refused": str(error)[:200]}
    except MemoryError:
        return {"refused": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001 - whatever a stranger's program does
        return {"refused": f"{type(error).__name__}: {error}"[:200]}
    return {"text": "".join(pieces)}


def answering(chars_max: int) -> Callable[[dict[str, Any]], dict[str, str]]:
    """Return what answers one line after the other."""
    template: Any = None

    def answer(asked: dict[str, Any]) -> dict[str, str]:
        nonlocal template
        if "template" not in asked:
            return rendered(template, asked["variables"], chars_max)
        version = tuple(map(int, re.findall(r"\d+", jinja2.__version__)[:3]))
        if version < NEEDED:
            return {"broken": f"it needs jinja2 {'.'.join(map(str, NEEDED))} or newer"}
        try:
            template = compiled(asked["template"])
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            return {"broken": f"{type(error).__name__}: {error}"[:200]}
        return {}

    return answer


def main() -> None:
    """Answer lines until there are no more; each may take so much memory, time and text."""
    memory_bytes, seconds, chars_max = map(int, sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = answering(chars_max)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
