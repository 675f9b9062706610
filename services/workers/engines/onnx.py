"""Runs any ONNX model whose signature the catalogue declares, on the providers it asks for."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from schemas import datatypes
from schemas.catalogue import Port
from schemas.errors import ModelUnavailable
from services.telemetry import get_logger
from services.workers import devices
from services.workers.engines import fields, model_files, providers
from services.workers.engines.tensor_engine import TensorEngine, narrows


if TYPE_CHECKING:
    from numpy.typing import NDArray

ONNX_BFLOAT16 = 16
"""Of onnx.TensorProto.DataType."""
CUDA = "CUDAExecutionProvider"
NVIDIA = frozenset({CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"})
log = get_logger()
_ONNX_TYPES = {**datatypes.ONNX, "tensor(bfloat16)": "BF16"}


class OnnxEngine(TensorEngine):
    """Inputs and outputs are the tensors that the catalogue declares.

    Params of the catalogue entry: `providers` (a list of execution providers, CPU by default),
    `provider_options` (by provider, see `providers`), `strict_provider` (true: a provider that is
    not really active is a reason not to serve), `threads` (1) of one inference.
    """

    packages: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime")
    bounds_threads: ClassVar[bool] = True
    session: Any = None
    _active: tuple[str, ...] = ()

    @override
    def missing(self) -> str | None:
        absent = fields.missing_package("onnxruntime", "numpy")
        if absent is not None:
            return absent
        try:
            model_files.locate(self.models_dir, self.spec.source)
            self._check_providers()
        except ModelUnavailable as error:
            return error.message
        return None

    @override
    def is_uncertain(self) -> bool:
        """Tell whether a provider is asked for that may turn out to be idle: no such device."""
        return self._is_strict() and providers.wanted(self.spec.params) != [providers.CPU]

    @override
    def load(self) -> None:
        """Load, and compare with the declared signature.

        Raises:
            ModelUnavailable: Absent, damaged, unsafe, another signature, a provider not active.
        """
        bytes_max = int(self.spec.params.get("bytes_max", model_files.MODEL_BYTES_MAX))
        data = model_files.read(self.models_dir, self.spec.source, bytes_max)
        model_files.check_onnx(data)
        self._check_providers()
        session = self._open(data)
        self._active = self._check_active(session)
        self.check_ports()
        _compare("input", self.spec.inputs, session.get_inputs(), whole=True)
        _compare("output", self.spec.outputs, session.get_outputs(), whole=False)
        self.session = session

    knows_bf16 = True

    @override
    def compute(
        self, feeds: "Mapping[str, NDArray[Any]]", params: Mapping[str, Any]
    ) -> "Sequence[NDArray[Any]]":
        return self._run([port.tensor_name for port in self.spec.outputs], feeds)

    @override
    def close(self) -> None:
        self.session = None

    def _run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Call the runtime; BF16, which numpy does not have, goes in and out as bits."""
        ports = {port.tensor_name: port for port in (*self.spec.inputs, *self.spec.outputs)}
        if all(port.datatype != "BF16" for port in ports.values()):
            found: list[Any] = self.session.run(names, feeds)
            return found
        import onnxruntime

        values = {}
        for name, array in feeds.items():
            make = onnxruntime.OrtValue.ortvalue_from_numpy
            if ports[name].datatype == "BF16":
                make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
                values[name] = make(array, ONNX_BFLOAT16)
            else:
                values[name] = make(array)
        outputs = self.session.run_with_ort_values(names, values)
        return [
            _bits(value) if ports[name].datatype == "BF16" else value.numpy()
            for name, value in zip(names, outputs, strict=True)
        ]

    @override
    def gpu(self) -> int | None:
        wanted = providers.wanted(self.spec.params)
        return next((self._gpu(name) for name in wanted if name in NVIDIA), None)

    @override
    def is_for_gpu(self) -> bool:
        return not NVIDIA.isdisjoint(providers.wanted(self.spec.params))

    @override
    def devices(self) -> tuple[str, ...]:
        """Return the providers that have a part of the graph, best first."""
        return self._active

    def _is_strict(self) -> bool:
        return self.spec.params.get("strict_provider", True) is not False

    def _check_providers(self) -> None:
        """Refuse to serve without a provider that is asked for.

        Raises:
            ModelUnavailable: This build of onnxruntime does not have it; or an option is amiss.
        """
        wanted = providers.wanted(self.spec.params)
        for name in wanted:
            self._options(name)
        if not self._is_strict() or wanted == [providers.CPU]:
            return
        import onnxruntime

        known = onnxruntime.get_available_providers()
        for name in wanted:
            if name not in known:
                raise ModelUnavailable(_inactive(name, known))

    def _check_active(self, session: Any) -> tuple[str, ...]:
        """Return the providers that have a part of the graph.

        Raises:
            ModelUnavailable: One that is asked for could not start, or the processor has it all.
        """
        known = session.get_providers()
        wanted = providers.wanted(self.spec.params)
        active = tuple(name for name in known if name in _assigned(session))
        if self._is_strict():
            for name in wanted:
                if name not in known:
                    raise ModelUnavailable(_inactive(name, known))
            if active == (providers.CPU,) and wanted[0] != providers.CPU:
                raise ModelUnavailable(
                    f"the provider {wanted[0]} can compute nothing of this model; name "
                    f"{providers.CPU} first, or allow it with strict_provider: false"
                )
        return active

    def _gpu(self, provider: str) -> int:
        """Return the number of the GPU that a provider takes."""
        number = self._options(provider).get("device_id", "0")
        return int(number) if number.isdecimal() else 0

    def _options(self, provider: str) -> dict[str, str]:
        operator = self.spec.params.get("operator_options", {})
        return providers.options(self.spec.params, operator, provider)

    def _share(self, provider: str) -> dict[str, str]:
        """Return the options that keep a model within its share of a GPU's memory."""
        share = None if self.spec.limits is None else self.spec.limits.gpu_share
        if share is None or provider != CUDA:
            return {}
        name = f"cuda:{self._gpu(provider)}"
        limits = [int(share * gpu.memory_bytes) for gpu in devices.gpus() if gpu.name == name]
        if not limits:
            return {}
        return {"gpu_mem_limit": str(limits[0]), "arena_extend_strategy": "kSameAsRequested"}

    def _open(self, data: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        known = onnxruntime.get_available_providers()
        names = [name for name in providers.wanted(self.spec.params) if name in known]
        wanted = [(name, self._options(name) | self._share(name)) for name in names]
        if not NVIDIA.isdisjoint(names):
            _find_libraries()
        try:
            session = onnxruntime.InferenceSession(data, options, providers=wanted)
        except Exception as error:
            raise ModelUnavailable("onnxruntime cannot load the model", cause=str(error)) from error
        session.disable_fallback()
        return session


def _find_libraries() -> None:
    """Have CUDA and cuDNN loaded from Python packages, where they are installed as such."""
    import onnxruntime

    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it does not find
        onnxruntime.preload_dlls()
    if said.getvalue():
        log.debug("libraries_not_found", said=said.getvalue())


def _assigned(session: Any) -> set[str]:
    """Return the providers that have a part of a session's graph, after it was optimised."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except AttributeError:  # before onnxruntime 1.24 it did not say
        return set(session.get_providers())
    return {part.ep_name for part in parts} or set(session.get_providers())


def _inactive(name: str, active: Sequence[str]) -> str:
    return (
        f"the provider {name} is not active here, only {', '.join(active)}; install it, or allow "
        "others with strict_provider: false"
    )


def _compare(side: str, declared: Sequence[Port], found: Sequence[Any], *, whole: bool) -> None:
    """Refuse a model whose tensors are not those of the catalogue.

    Raises:
        ModelUnavailable: Names the tensor, and what the file has.
    """
    known = {item.name: item for item in found}
    names = [port.tensor_name for port in declared]
    for port in declared:
        item = known.get(port.tensor_name)
        if item is None:
            have = ", ".join(known)
            raise ModelUnavailable(f"the model has no {side} '{port.tensor_name}', only {have}")
        if _ONNX_TYPES.get(item.type) != port.datatype:
            raise ModelUnavailable(
                f"{side} '{port.name}' is declared {port.datatype}, the model has {item.type}"
            )
        shape = [size if isinstance(size, int) else -1 for size in item.shape]
        if shape and not narrows(port.shape, shape):
            raise ModelUnavailable(
                f"{side} '{port.name}' is declared {list(port.shape)}, the model has {shape}"
            )
    missing = [name for name in known if name not in names]
    if whole and missing:
        raise ModelUnavailable(f"the model also needs the {side} '{missing[0]}': declare it")


def _bits(value: Any) -> "NDArray[Any]":
    """Return the bits of a tensor in the processor's memory."""
    import ctypes

    import numpy as np

    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, "<u2").reshape(value.shape())
