"""An ONNX file, as it is run: what was converted, or what is to be described or quantised."""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from clawdbot.conversion.source import Feeds, Source, TensorInfo, need
from schemas import datatypes
from schemas.errors import InvalidArgument


if TYPE_CHECKING:
    from numpy.typing import NDArray


class OnnxSource(Source):
    """Runs on the CPU, in one thread, as a worker would by default.

    Raises:
        InvalidArgument: onnxruntime cannot load it, or it has no tensors that a catalogue can have.
    """

    packages: tuple[str, ...] = ("onnx", "onnxruntime", "numpy")

    def __init__(self, path: Path) -> None:
        need("models", "onnxruntime", "numpy")
        import onnxruntime

        self.path = path
        self.name = path.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidArgument(f"cannot read {path.name}: {error.strerror}") from error
        self.size_bytes, self.sha256 = len(data), hashlib.sha256(data).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InvalidArgument(f"onnxruntime cannot load {path.name}: {error}") from error
        self.inputs = [_info(item) for item in self._session.get_inputs()]
        self.outputs = [_info(item) for item in self._session.get_outputs()]

    @property
    def opset(self) -> int:
        """Version of the operators, of ONNX itself."""
        need("convert", "onnx")
        import onnx

        proto = onnx.load(str(self.path), load_external_data=False)
        return max((item.version for item in proto.opset_import if not item.domain), default=1)

    @override
    def run(self, feeds: Feeds) -> "dict[str, NDArray[Any]]":
        try:
            arrays = self._session.run(None, dict(feeds))
        except Exception as error:
            raise InvalidArgument(f"the ONNX model cannot compute this: {error}") from error
        names = (item.name for item in self.outputs)
        return dict(zip(names, arrays, strict=True))

    @override
    def write(self, path: Path, opset: int) -> None:
        shutil.copyfile(self.path, path)


def _info(item: Any) -> TensorInfo:
    """Return what is known of an input or output.

    Raises:
        InvalidArgument: It is no tensor.
    """
    if item.type not in datatypes.ONNX:
        raise InvalidArgument(f"'{item.name}' is {item.type}, and a catalogue has tensors only")
    shape = tuple(
        size if isinstance(size, int) else str(size or f"{item.name}_{index}")
        for index, size in enumerate(item.shape)
    )
    return TensorInfo(item.name, datatypes.ONNX[item.type], shape)
