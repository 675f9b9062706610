"""Looks through a `torch.export` archive (.pt2) and writes anew what may be loaded of it.

`torch.export.load` trusts its file: it unpickles sample inputs, custom objects and some weights,
evaluates shape expressions with sympy, looks operators up by any dotted name (`torch.os.system` is
one), imports the modules that tree specifications name, executes guards, and builds Python source
out of names. So nothing of a file reaches it but what is known here: raw weights, a graph of
operators of ATen, names that are identifiers, and shapes in a small grammar. The rest is left out
where the program runs without it, and refused where not.

What stays trusted are the kernels of ATen, given whatever arguments the graph has.

Source: torch 2.13, torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py.
"""

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import orjson
from typing_extensions import override

from schemas.errors import ModelUnavailable


ENTRIES_MAX = 20_000
PROGRAM_BYTES_MAX = 64 * 1024 * 1024

_KEPT = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.format_version"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_LEFT_OUT = re.compile(r"\.data/serialization_id|data/sample_inputs/model\.pt|extra/.*")
"""Sample inputs are pickled and serve nobody here."""
_PROGRAM = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_PLAIN = re.compile(r"[A-Za-z0-9_.]{0,512}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_TEXT = re.compile(r"[A-Za-z0-9_ .,:;>+/-]{0,512}")
"""Texts that operators take, such as the equation of an einsum."""
_VERSION = re.compile(r"[A-Za-z0-9_.+]{0,64}")
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!_*(from_file|save|load)\b)"
    r"((?!__)[A-Za-z0-9_]+|__i?(and|lshift|or|rshift|xor)__)\.(?!__)[A-Za-z0-9_]+"
    r"|torch\.ops\.quantized_decomposed\.(?!__)[a-z0-9_]+\.(?!__)[A-Za-z0-9_]+"
    r"|torch\.ops\.higher_order\.(cond|scan|while_loop|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|or_|pow|sub|truediv)"
    r"|torch\.(sym_float|sym_int|sym_ite|sym_max|sym_min|sym_not|sym_sum)"
    r"|math\.(ceil|floor|trunc)"
)
_SYMBOL = r"Symbol\('[a-z]{1,4}\d{1,5}'(, [a-z]+=(True|False))*\)"
_SYMBOL_NAME = re.compile(r"[a-z]{1,4}\d{1,5}")
_TOKEN = re.compile(
    rf"{_SYMBOL}|Pow\({_SYMBOL}, Integer\(-?\d\)\)|Integer\(-?\d{{1,19}}\)"
    r"|[a-z]{1,4}\d{1,5}\b|\d{1,19}\b"
    r"|(Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|Where|Identity"
    r"|IntTrueDiv|FloatTrueDiv|TruncToInt|FloorToInt|CeilToInt|RoundToInt|ToFloat|And|Or|Not"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan)\("
    r"|Float\('[0-9.e+-]{1,40}', precision=\d{1,3}\)"
    r"|//|\*(?!\*)|[(),+/<>= -]"
)
TOKENS_MAX = 500
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", None}
_DROPPED: Mapping[str, Any] = {
    "metadata": {},
    "guards_code": [],
    "treespec_namedtuple_fields": {},
}
"""Fields of a program that it runs without, and what stands in their place."""


def sanitized(data: bytes, bytes_max: int) -> bytes:
    """Return an archive that holds what is known of `data` to be harmless, and nothing else.

    Raises:
        ModelUnavailable: It is no such archive, or cannot run without what is refused; says what.
    """
    entries = _looked_through(io.BytesIO(data), bytes_max, lambda _: True)
    entries["data/sample_inputs/model.pt"] = b""
    fresh = io.BytesIO()
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return fresh.getvalue()


def check(data: bytes | memoryview) -> None:
    """Refuse what `sanitized` refuses, without reading weights.

    Raises:
        ModelUnavailable: As `sanitized`.
    """
    file = io.BufferedReader(_View(memoryview(data)))
    _looked_through(file, len(data) + PROGRAM_BYTES_MAX, lambda name: name in {_PROGRAM, *_CONFIGS})


class _View(io.RawIOBase):
    """Bytes that lie elsewhere, as a file."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise OSError("before the beginning")
        self._at = start + offset
        return self._at

    @override
    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _looked_through(
    file: IO[bytes], bytes_max: int, is_read: Callable[[str], bool]
) -> dict[str, bytes]:
    """Return what is known of an archive to be harmless, as far as it is to be read.

    Raises:
        ModelUnavailable: It is no such archive, or holds what is refused.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, bytes_max, is_read)
        program = _program(entries.pop(_PROGRAM))
        for name in _CONFIGS:
            _check_payloads(orjson.loads(entries[name]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise ModelUnavailable("the file is no .pt2 archive: it is damaged") from error
    except KeyError as error:
        raise ModelUnavailable(f"the archive does not hold {error}") from error
    except (orjson.JSONDecodeError, RecursionError, TypeError, AttributeError) as error:
        raise ModelUnavailable("the program in the archive is malformed") from error
    return {**entries, _PROGRAM: orjson.dumps(program)}


def _entries(
    archive: zipfile.ZipFile, bytes_max: int, is_read: Callable[[str], bool]
) -> dict[str, bytes]:
    """Return what is kept of an archive, by the path below its one folder; empty if not read."""
    infos = archive.infolist()
    if len(infos) > ENTRIES_MAX or sum(info.file_size for info in infos) > bytes_max:
        raise ModelUnavailable(f"the archive holds more than {bytes_max} bytes")
    root = infos[0].filename.partition("/")[0] if infos else ""
    found: dict[str, bytes] = {}
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if folder != root or name in found:
            raise ModelUnavailable("the archive has two folders, or one file twice")
        if _LEFT_OUT.fullmatch(name):
            continue
        if not _KEPT.fullmatch(name) and name != _PROGRAM:
            raise ModelUnavailable(
                f"the archive holds '{name[:80]}'; a program of raw tensors and operators of ATen "
                "is loaded, no compiled code, custom objects or pickles: save it with "
                "torch.export.save, or convert it to ONNX"
            )
        if name == _PROGRAM and info.file_size > PROGRAM_BYTES_MAX:
            raise ModelUnavailable(f"the program has more than {PROGRAM_BYTES_MAX} bytes")
        found[name] = archive.read(info) if is_read(name) else b""
    return found


def _check_payloads(config: Mapping[str, Any]) -> None:
    """Refuse weights and constants that are not raw tensors."""
    _walk(config, "")
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False:
            raise ModelUnavailable(f"the tensor '{name}' is pickled; it must be a plain tensor")


def _program(content: bytes) -> Any:
    """Return a program without what is not needed.

    Raises:
        ModelUnavailable: Something of it is not known to be harmless.
    """
    program = orjson.loads(content)
    for name in program["range_constraints"]:
        if not _SYMBOL_NAME.fullmatch(name):
            raise ModelUnavailable(f"the program has a dimension called {name[:80]!r}")
    graph = program["graph_module"]
    graph["module_call_graph"] = [call for call in graph["module_call_graph"] if call["fqn"] == ""]
    return _walk(program, "")


def _walk(value: Any, key: str) -> Any:
    """Return a copy of JSON in which every text is one that its place may have."""
    if key in _DROPPED:
        return _DROPPED[key]
    match value:
        case dict():
            return {_text(name, ""): _walk(item, name) for name, item in value.items()}
        case list():
            return [_walk(item, key) for item in value]
        case str():
            return _text(value, key)
        case _:
            return value


def _text(text: str, key: str) -> str:
    check = _CHECKS.get(key, _PLAIN.fullmatch)
    if not check(text):
        what = f"in '{key}'" if key else "as a name"
        raise ModelUnavailable(
            f"the program has {text[:80]!r} {what}, which is not loaded; convert it to ONNX, or "
            "export it without"
        )
    return text


def _is_tree(text: str) -> bool:
    """Tell whether a tree specification is made of tuples, lists and dicts of plain names."""
    version, root = orjson.loads(text)
    pending, seen = [root], 0
    while pending:
        node = pending.pop()
        seen += 1
        if node["type"] not in _TREES or seen > ENTRIES_MAX or not isinstance(version, int):
            return False
        if node["context"] not in {None, "null"}:
            names = orjson.loads(node["context"])
            if not isinstance(names, list) or not all(_NAME.fullmatch(name) for name in names):
                return False
        pending += node["children_spec"]
    return True


def _is_expression(text: str) -> bool:
    """Tell whether a shape expression is made of dimensions, numbers and arithmetic alone."""
    at = 0
    for _ in range(TOKENS_MAX):
        if at == len(text):
            return True
        token = _TOKEN.match(text, at)
        if token is None:
            return False
        at = token.end()
    return False


def _is_name(text: str) -> bool:
    return not text or bool(_NAME.fullmatch(text))


_CHECKS: Mapping[str, Callable[[str], Any]] = {
    "as_operator": _TARGET.fullmatch,
    "as_string": _TEXT.fullmatch,
    "as_strings": _TEXT.fullmatch,
    "expr_str": _is_expression,
    "forward_arg_names": _is_name,
    "in_spec": _is_tree,
    "name": _is_name,
    "out_spec": _is_tree,
    "target": _TARGET.fullmatch,
    "torch_version": _VERSION.fullmatch,
}
"""What a text may be, by the field it is in; else letters, digits, `_` and `.`."""
