"""Models of torch: programs of `torch.export`, modules, folders of transformers."""

import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from clawdbot.conversion.source import Feeds, Source, TensorInfo, need
from schemas import datatypes, pt2
from schemas.errors import FailedPrecondition, InvalidArgument, ModelUnavailable


if TYPE_CHECKING:
    from numpy.typing import NDArray

ARCHIVE_BYTES_MAX = 16 * 1024 * 1024 * 1024


class TorchSource(Source):
    """A program whose arguments and outputs are tensors.

    Args:
        program: A `torch.export.ExportedProgram`.
        name: Of the source.
    """

    packages: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")

    def __init__(self, program: Any, name: str) -> None:
        need("torch", "torch")
        import torch

        torch.set_num_threads(1)  # as the ONNX model it is compared with
        self.name = name
        self._program = program
        self._module = program.module(check_guards=False)
        places, names = program.call_spec.in_spec.children()
        self._names = tuple(names.context or ())
        user_inputs = tuple(program.graph_signature.user_inputs)
        if len(user_inputs) != places.num_leaves + names.num_leaves or not all(
            leaf.is_leaf() for leaf in (*places.children(), *names.children())
        ):
            raise InvalidArgument("the module takes lists or dicts; it must take tensors")
        nodes = {node.name: node for node in program.graph.nodes}
        self.inputs = [_info(name, nodes[name].meta["val"]) for name in user_inputs]
        out = program.call_spec.out_spec
        is_dict = out.type is not None and issubclass(out.type, dict)
        count = len(program.graph_signature.user_outputs)
        given = map(str, out.context) if is_dict else map("output_{}".format, range(count))
        self._outputs = tuple(  # a graph has one name for one tensor
            f"{name}_out" if name in user_inputs else name for name in given
        )
        weights = (*program.state_dict.values(), *program.constants.values())
        self.size_bytes = sum(getattr(item, "nbytes", 0) for item in weights)

    @override
    def run(self, feeds: Feeds) -> "dict[str, NDArray[Any]]":
        import torch

        tensors = {name: torch.from_numpy(array.copy()) for name, array in feeds.items()}
        by_place = [tensors[i.name] for i in self.inputs if i.name not in self._names]
        by_name = {name: tensors[name] for name in self._names}
        try:
            with torch.inference_mode():
                found = self._module(*by_place, **by_name)
        except (RuntimeError, IndexError, ValueError) as error:
            raise InvalidArgument(
                f"the module cannot compute these inputs; give some with --examples: {error}"
            ) from error
        items = found.values() if isinstance(found, Mapping) else found
        items = items if not hasattr(items, "numpy") else (items,)
        return {
            name: item.detach().cpu().numpy()
            for name, item in zip(self._outputs, items, strict=True)
        }

    @override
    def write(self, path: Path, opset: int) -> None:
        need("convert", "onnx", "onnxscript")
        import torch

        try:
            with quiet():
                made = torch.onnx.export(
                    self._program,
                    (),
                    dynamo=True,
                    opset_version=opset,
                    input_names=[item.name for item in self.inputs],
                    output_names=list(self._outputs),
                    external_data=False,
                    optimize=True,
                    verbose=False,
                )
                _make_room(made.model.graph, set(self._outputs))
                made.save(str(path), external_data=False)
        except Exception as error:
            raise FailedPrecondition(
                f"torch cannot write this model as ONNX with opset {opset}: {brief(error)}"
            ) from error


def _make_room(graph: Any, names: set[str]) -> None:
    """Rename what inside a graph has the name of an output: operators have common names."""
    outputs = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names and id(value) not in outputs:
                value.name = f"{value.name}__inside"


def program_file(path: Path) -> TorchSource:
    """Return the program in a .pt2 file, of which only what is harmless is loaded.

    Raises:
        InvalidArgument: It is none, or holds something else; says what.
    """
    need("torch", "torch")
    import torch

    data = path.read_bytes()
    try:
        archive = pt2.sanitized(data, ARCHIVE_BYTES_MAX)
        with quiet():
            program = torch.export.load(io.BytesIO(archive))
    except ModelUnavailable as error:
        raise InvalidArgument(f"{path.name}: {error.message}") from error
    except Exception as error:
        raise InvalidArgument(f"torch cannot load {path.name}: {brief(error)}") from error
    source = TorchSource(program, path.name)
    source.size_bytes, source.sha256 = len(data), hashlib.sha256(data).hexdigest()
    return source


def module_source(module: Any, args: Any, kwargs: Mapping[str, Any], name: str) -> TorchSource:
    """Return a module, exported with these arguments; the first dimension of each is free.

    Raises:
        InvalidArgument: It cannot be exported.
    """
    import torch

    places = tuple(_two_rows(item) for item in args)
    named = {key: _two_rows(item) for key, item in kwargs.items()}
    rows = torch.export.Dim("rows")

    def shape(item: Any) -> Any:
        return {0: rows} if item.ndim else {}

    dynamic = (tuple(map(shape, places)), {key: shape(item) for key, item in named.items()})
    flat: Any = dynamic[0]
    if named:  # torch wants one tree by the names of the arguments
        order = list(inspect.signature(module.forward).parameters)
        flat = {**dict(zip(order, dynamic[0], strict=False)), **dynamic[1]}
    try:
        with quiet():
            program = torch.export.export(module.eval(), places, named, dynamic_shapes=flat)
    except Exception as error:
        raise InvalidArgument(f"torch cannot export the module: {brief(error)}") from error
    return TorchSource(program, name)


def _two_rows(tensor: Any) -> Any:
    """Return at least two rows: torch takes a size of 1 to be 1 for ever."""
    if not hasattr(tensor, "ndim"):
        raise InvalidArgument("the arguments of a module must be tensors")
    if tensor.ndim and tensor.shape[0] == 1:
        return tensor.repeat(2, *[1] * (tensor.ndim - 1))
    return tensor


def _info(name: str, value: Any) -> TensorInfo:
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype not in datatypes.TORCH:
        raise InvalidArgument(f"'{name}' is {dtype}, and a catalogue has no such tensors")
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorInfo(name, datatypes.TORCH[dtype], shape)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from warning of itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def brief(error: Exception) -> str:
    """Return what is wrong, on a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:399] + "…"  # noqa: PLR2004 - a few lines
