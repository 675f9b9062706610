"""Runs programs of `torch.export` (.pt2) whose signature the catalogue declares."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from schemas import datatypes, pt2
from schemas.catalogue import Port
from schemas.errors import EngineFailed, ModelUnavailable
from services.workers.engines import fields, model_files, torch_models
from services.workers.engines.cuda_graphs import Graphs
from services.workers.engines.tensor_engine import TensorEngine, narrows
from services.workers.engines.torch_models import OnTorch


if TYPE_CHECKING:
    from numpy.typing import NDArray


class TorchProgramEngine(OnTorch, TensorEngine):
    """Inputs are the arguments of the module's `forward`, outputs the keys of the dict it returns.

    Where it returns no dict they are `output_0`, `output_1` and so on. Params of the catalogue
    entry: `device` (auto, cpu, cuda, cuda:1, mps, ...), `strict_device` (true: a device that is not
    here is a reason not to serve), `cuda_graphs` (false: on an NVIDIA GPU calls are recorded and
    replayed, see `cuda_graphs`).
    """

    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._by_name: frozenset[str] = frozenset()
        """Arguments that go in by name."""
        self._arguments: tuple[str, ...] = ()
        self._outputs: tuple[str, ...] = ()
        self._graphs: Graphs | None = None

    @override
    def missing(self) -> str | None:
        absent = fields.missing_package("torch", "numpy")
        if absent is not None:
            return absent
        try:
            model_files.locate(self.models_dir, self.spec.source)
            torch_models.asked_device(self.spec.params)
        except ModelUnavailable as error:
            return error.message
        return None

    @override
    def is_uncertain(self) -> bool:
        """Tell whether a device is asked for that may not be here."""
        return torch_models.asked_device(self.spec.params) not in {"auto", "cpu"}

    @override
    def load(self) -> None:
        """Load, and compare with the declared signature.

        Raises:
            ModelUnavailable: Absent, damaged, unsafe, another signature, no such device.
        """
        import torch
        from torch.export.passes import move_to_device_pass

        bytes_max = int(self.spec.params.get("bytes_max", model_files.MODEL_BYTES_MAX))
        data = model_files.read(self.models_dir, self.spec.source, bytes_max)
        archive = pt2.sanitized(data, bytes_max)
        self.device = torch_models.device_of(self.spec.params)
        torch_models.keep_share(self.spec, self.device)
        try:
            program = torch.export.load(io.BytesIO(archive))
            if self.device != "cpu":
                program = move_to_device_pass(program, self.device)
            module = program.module(check_guards=False)  # ports are checked for each request
        except Exception as error:
            raise ModelUnavailable("torch cannot load the program", cause=str(error)) from error
        self.check_ports()
        self._compare(program)
        self.model = module
        if self.spec.params.get("cuda_graphs", False) and self.gpu() is not None:
            self._graphs = Graphs(self._call, self.device, self.spec.max_batch_size)

    @override
    def compute(
        self, feeds: "Mapping[str, NDArray[Any]]", params: Mapping[str, Any]
    ) -> "Sequence[NDArray[Any]]":
        import torch

        tensors = {name: torch.from_numpy(feeds[name].copy()) for name in self._arguments}
        with torch_models.computing("the program could not compute this input"):
            if self._graphs is not None:
                named = self._graphs(tensors)
            else:
                named = self._call({name: item.to(self.device) for name, item in tensors.items()})
            return [named[port.tensor_name].cpu().numpy() for port in self.spec.outputs]

    def _call(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the program gives for tensors on its device."""
        by_place = [tensors[name] for name in self._arguments if name not in self._by_name]
        return _named(self.model(*by_place, **{name: tensors[name] for name in self._by_name}))

    @override
    def close(self) -> None:
        self._graphs = None
        super().close()

    def _compare(self, program: Any) -> None:
        """Refuse a program whose arguments and outputs are not those of the catalogue.

        Raises:
            ModelUnavailable: Names one.
        """
        signature = program.graph_signature
        nodes = {node.name: node for node in program.graph.nodes}
        places, names = program.call_spec.in_spec.children()
        leaves = (*places.children(), *names.children())
        if not all(leaf.is_leaf() for leaf in leaves) or len(leaves) != len(signature.user_inputs):
            raise ModelUnavailable("the program takes lists or dicts; it must take tensors")
        self._arguments = tuple(signature.user_inputs)
        self._by_name = frozenset(names.context or ())
        out = program.call_spec.out_spec
        self._outputs = tuple(
            out.context if out.type is dict else map("output_{}".format, range(out.num_leaves))
        )
        if len(self._outputs) != len(signature.user_outputs):
            raise ModelUnavailable("the program gives nested outputs; it must give tensors")
        _check(
            "input",
            self.spec.inputs,
            dict(zip(self._arguments, signature.user_inputs, strict=True)),
            nodes,
        )
        _check(
            "output",
            self.spec.outputs,
            dict(zip(self._outputs, signature.user_outputs, strict=True)),
            nodes,
        )
        declared = {port.tensor_name for port in self.spec.inputs}
        for name in self._arguments:
            if name not in declared:
                raise ModelUnavailable(f"the program also needs the input '{name}': declare it")


def _check(
    side: str, ports: Sequence[Port], found: Mapping[str, str], nodes: Mapping[str, Any]
) -> None:
    """Refuse a port that is not as the program has it.

    Raises:
        ModelUnavailable: Names it, and what the program has.
    """
    for port in ports:
        if port.tensor_name not in found:
            have = ", ".join(found)
            raise ModelUnavailable(f"the program has no {side} '{port.tensor_name}', only {have}")
        value = nodes[found[port.tensor_name]].meta.get("val")
        dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
        if datatypes.TORCH.get(dtype) != port.datatype:
            raise ModelUnavailable(
                f"{side} '{port.name}' is declared {port.datatype}, the program has {dtype}"
            )
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        if not narrows(port.shape, shape):
            raise ModelUnavailable(
                f"{side} '{port.name}' is declared {list(port.shape)}, the program has {shape}"
            )


def _named(found: Any) -> Mapping[str, Any]:
    """Return what a module gave, by name.

    Raises:
        EngineFailed: No tensors.
    """
    if isinstance(found, Mapping):
        return found
    items = found if isinstance(found, tuple | list) else (found,)
    if not all(hasattr(item, "cpu") for item in items):
        raise EngineFailed("the program did not give tensors")
    return {f"output_{index}": item for index, item in enumerate(items)}
