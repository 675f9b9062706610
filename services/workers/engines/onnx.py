"""Runs any ONNX model whose signature the catalogue declares, on the providers it asks for."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from schemas import tensors
from schemas.catalogue import Port
from schemas.errors import EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers.engine import BatchEngine, Request
from services.workers.engines import fields, model_files


if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = "CPUExecutionProvider"
ONNX_BFLOAT16 = 16
"""Of onnx.TensorProto.DataType."""

_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_DTYPES = {
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "BF16": "<u2",  # numpy has no such type: its bits
    "FP32": "<f4",
    "FP64": "<f8",
}


class OnnxEngine(BatchEngine):
    """Inputs and outputs are the tensors that the catalogue declares.

    Params of the catalogue entry: `providers` (a list of execution providers, CPU by default),
    `provider_options` (by provider), `strict_provider` (true: a provider that is not really active
    is a reason not to serve), `threads` (1) of one inference.
    """

    session: Any = None

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
        return self._is_strict() and self._providers() != [CPU]

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
        active = session.get_providers()
        idle = [name for name in self._providers() if name not in active]
        if idle and self._is_strict():
            raise ModelUnavailable(_inactive(idle[0], active))
        _compare("input", self.spec.inputs, session.get_inputs(), whole=True)
        _compare("output", self.spec.outputs, session.get_outputs(), whole=False)
        self.session = session

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        """Return datatypes and inner shapes; None for what is computed by itself, or refused."""
        if not self.spec.max_batch_size:
            return None
        try:
            self._check(request)
        except InvalidArgument:
            return None
        return tuple((port.name, request.inputs[port.name].shape[1:]) for port in self.spec.inputs)

    @override
    def rows(self, request: Request) -> int:
        if not self.spec.max_batch_size:
            return 1
        rows: int = request.inputs[self.spec.inputs[0].name].shape[0]
        return rows

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        import numpy as np

        for request in batch:
            self._check(request)
        feeds = {}
        for port in self.spec.inputs:
            parts = [_array(request.inputs[port.name], port.name) for request in batch]
            feeds[port.tensor_name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        names = [port.tensor_name for port in self.spec.outputs]
        try:
            arrays = self._run(names, feeds)
        except Exception as error:
            raise EngineFailed(
                "the model could not compute this input", cause=str(error)
            ) from error
        total = sum(self.rows(request) for request in batch)
        outputs: list[dict[str, Value]] = [{} for _ in batch]
        for port, array in zip(self.spec.outputs, arrays, strict=True):
            if self.spec.max_batch_size and array.shape[:1] != (total,):
                raise EngineFailed(f"output '{port.name}' does not have one row for each input row")
            at = 0
            for request, found in zip(batch, outputs, strict=True):
                count = self.rows(request)
                piece = array if len(batch) == 1 else array[at : at + count]
                found[port.name] = _tensor(piece, port)
                at += count
        return list(outputs)

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

    def _providers(self) -> list[str]:
        names = self.spec.params.get("providers", [CPU])
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise ModelUnavailable("'providers' must be a list of execution providers")
        return names

    def _is_strict(self) -> bool:
        return self.spec.params.get("strict_provider", True) is not False

    def _check_providers(self) -> None:
        """Refuse to serve without a provider that is asked for.

        Raises:
            ModelUnavailable: This build of onnxruntime does not have it.
        """
        wanted = self._providers()
        if not self._is_strict() or wanted == [CPU]:
            return
        import onnxruntime

        known = onnxruntime.get_available_providers()
        for name in wanted:
            if name not in known:
                raise ModelUnavailable(_inactive(name, known))

    def _open(self, data: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(self.spec.params.get("threads", 1))
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        known = onnxruntime.get_available_providers()
        given = self.spec.params.get("provider_options", {})
        wanted = [(name, given.get(name, {})) for name in self._providers() if name in known]
        try:
            session = onnxruntime.InferenceSession(data, options, providers=wanted)
        except Exception as error:
            raise ModelUnavailable("onnxruntime cannot load the model", cause=str(error)) from error
        session.disable_fallback()
        return session

    def _check(self, request: Request) -> None:
        """Refuse inputs that are not as declared.

        Raises:
            InvalidArgument: Names `inputs.<name>`.
        """
        rows = set()
        for port in self.spec.inputs:
            rows.add(check_tensor(request.inputs.get(port.name), port).shape[:1])
        if not self.spec.max_batch_size:
            return
        if len(rows) > 1:
            raise InvalidArgument("the inputs differ in their first dimension", field="inputs")
        ((count,),) = rows
        if not 0 < count <= self.spec.max_batch_size:
            raise InvalidArgument(
                f"a request has 1 to {self.spec.max_batch_size} rows, this one {count}",
                field=f"inputs.{self.spec.inputs[0].name}",
            )


def check_tensor(value: Value, port: Port) -> Tensor:
    """Return a value that is the tensor a port declares.

    Raises:
        InvalidArgument: Names `inputs.<name>`.
    """
    where = f"inputs.{port.name}"
    if not isinstance(value, Tensor):
        raise InvalidArgument(f"'{port.name}' must be a tensor of {port.datatype}", field=where)
    if value.datatype != port.datatype:
        raise InvalidArgument(
            f"'{port.name}' must be {port.datatype}, not {value.datatype}", field=where
        )
    if not tensors.fits(value.shape, port.shape):
        raise InvalidArgument(
            f"'{port.name}' must have the shape {list(port.shape)}, not {list(value.shape)}",
            field=where,
        )
    try:
        value.check()
    except InvalidArgument as error:
        raise InvalidArgument(f"'{port.name}': {error.message}", field=where) from error
    return value


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
        datatype = _ONNX_TYPES.get(item.type)
        if port.kind != "tensor" or not port.required:
            raise ModelUnavailable(f"{side} '{port.name}' must be declared a required tensor")
        if datatype != port.datatype:
            raise ModelUnavailable(
                f"{side} '{port.name}' is declared {port.datatype}, the model has {item.type}"
            )
        shape = [size if isinstance(size, int) else -1 for size in item.shape]
        if shape and not _narrows(port.shape, shape):
            raise ModelUnavailable(
                f"{side} '{port.name}' is declared {list(port.shape)}, the model has {shape}"
            )
    missing = [name for name in known if name not in names]
    if whole and missing:
        raise ModelUnavailable(f"the model also needs the {side} '{missing[0]}': declare it")


def _narrows(declared: Sequence[int], found: Sequence[int]) -> bool:
    """Tell whether each shape that is declared is one the model takes."""
    return len(declared) == len(found) and all(
        size < 0 or size == wanted for wanted, size in zip(declared, found, strict=True)
    )


def _array(tensor: Tensor, name: str) -> "NDArray[Any]":
    import numpy as np

    if tensor.datatype == "BYTES":
        items = tensors.elements(tensor.data, tensors.count_of(tensor.shape))
        try:
            texts = [item.decode() for item in items]
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"an element of '{name}' is not UTF-8", field=f"inputs.{name}"
            ) from error
        return np.array(texts, object).reshape(tensor.shape)
    if tensor.datatype == "BOOL":
        flags: NDArray[Any] = np.frombuffer(tensor.data, np.uint8) != 0
        return flags.reshape(tensor.shape)
    return np.frombuffer(tensor.data, _DTYPES[tensor.datatype]).reshape(tensor.shape)


def _bits(value: Any) -> "NDArray[Any]":
    """Return the bits of a tensor in the processor's memory."""
    import ctypes

    import numpy as np

    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, "<u2").reshape(value.shape())


def _tensor(array: "NDArray[Any]", port: Port) -> Tensor:
    """Return an output, when it is as declared.

    Raises:
        EngineFailed: It is not.
    """
    if not tensors.fits(array.shape, port.shape):
        raise EngineFailed(
            f"output '{port.name}' has the shape {list(array.shape)}, declared {list(port.shape)}"
        )
    if port.datatype == "BYTES":
        data = tensors.pack(str(item).encode() for item in array.reshape(-1))
    else:
        data = array.tobytes()
    return Tensor(datatype=port.datatype, shape=array.shape, data=data)
