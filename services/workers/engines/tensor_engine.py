"""What the engines share that compute tensors which the catalogue declares.

Requests are checked against the declaration, joined along their first dimension to one call, and
what comes out is checked and taken apart again.
"""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from schemas import datatypes, tensors
from schemas.catalogue import Port
from schemas.errors import ClawdbotError, EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers.engine import BatchEngine, Request
from services.workers.engines import padding


if TYPE_CHECKING:
    from numpy.typing import NDArray

THREADS_MAX = 256


class TensorEngine(BatchEngine):
    """An engine whose inputs and outputs are numpy arrays by the names of the model."""

    knows_bf16: ClassVar[bool] = False
    """Whether BF16, which numpy does not have, comes and goes as its bits, in UINT16."""

    @abstractmethod
    def compute(
        self, feeds: "Mapping[str, NDArray[Any]]", params: Mapping[str, Any]
    ) -> "Sequence[NDArray[Any]]":
        """Compute the outputs that the spec declares, in its order.

        Args:
            feeds: By `tensor_name`; of BYTES arrays of str.
            params: Those of the first request; an engine that heeds them has them in its
                `batch_key`.

        Raises:
            EngineFailed: The library refused the input, with its reason as `cause`.
            Exception: As well; it is reported as the above.
        """

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        """Return inner shapes as they are computed; None for what is by itself, or refused."""
        if not self.spec.max_batch_size:
            return None
        try:
            self.check(request)
        except InvalidArgument:
            return None
        if self.spec.buckets is None:
            return tuple(request.inputs[port.name].shape[1:] for port in self.spec.inputs)
        return tuple(self._shape(port, request)[1:] for port in self.spec.inputs)

    @override
    def rows(self, request: Request) -> int:
        if not self.spec.max_batch_size:
            return 1
        rows: int = request.inputs[self._first].shape[0]
        return rows

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        import numpy as np

        if len(batch) == 1:
            self.check(batch[0])  # several share a key, which only checked ones have
        feeds = {}
        for port in self.spec.inputs:
            parts = [self._feed(port, request) for request in batch]
            feeds[port.tensor_name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        try:
            arrays = self.compute(feeds, batch[0].params)
        except ClawdbotError:
            raise
        except Exception as error:
            raise EngineFailed(
                "the model could not compute this input", cause=str(error)
            ) from error
        counts = [self.rows(request) for request in batch]
        outputs: list[dict[str, Value]] = [{} for _ in batch]
        for port, array in zip(self.spec.outputs, arrays, strict=True):
            if self.spec.max_batch_size and array.shape[:1] != (sum(counts),):
                raise EngineFailed(f"output '{port.name}' does not have one row for each input row")
            at = 0
            for request, count, found in zip(batch, counts, outputs, strict=True):
                piece = array if len(batch) == 1 else array[at : at + count]
                found[port.name] = tensor_of(self._cut(piece, port, request), port)
                at += count
        return list(outputs)

    def check(self, request: Request) -> None:
        """Refuse inputs that are not as declared.

        Raises:
            InvalidArgument: Names `inputs.<name>`.
        """
        rows = set()
        for port in self.spec.inputs:
            value = request.inputs.get(port.name)
            if value is not None or port.required:
                rows.add(check_tensor(value, port).shape[:1])
        if self.spec.buckets is not None:
            padding.length(self.spec.buckets, request)
        if not self.spec.max_batch_size:
            return
        if len(rows) > 1:
            raise InvalidArgument("the inputs differ in their first dimension", field="inputs")
        ((count,),) = rows
        if not 0 < count <= self.spec.max_batch_size:
            raise InvalidArgument(
                f"a request has 1 to {self.spec.max_batch_size} rows, this one {count}",
                field=f"inputs.{self._first}",
            )

    @cached_property
    def _first(self) -> str:
        """The first input that every request has."""
        return next(port.name for port in self.spec.inputs if port.required)

    def _feed(self, port: Port, request: Request) -> "NDArray[Any]":
        """Return one input of one request as an array, padded where it is to be."""
        import numpy as np

        buckets, value = self.spec.buckets, request.inputs.get(port.name)
        if buckets is None or port.name not in buckets.padded:
            return array_of(request.inputs[port.name], port.name)
        padded, shape = buckets.padded[port.name], self._shape(port, request)
        if isinstance(value, Tensor):
            array = array_of(value, port.name)
        else:
            own = list(shape)
            own[padded.axis] = padding.length(buckets, request)
            array = np.ones(own, datatypes.NUMPY[port.datatype])
        return padding.pad(array, padded.axis, shape[padded.axis], padded.value)

    def _shape(self, port: Port, request: Request) -> tuple[int, ...]:
        """Return the shape that an input of a request is computed with."""
        buckets, value = self.spec.buckets, request.inputs.get(port.name)
        if isinstance(value, Tensor):
            shape = list(value.shape)
        else:  # a mask that is made: beside the length it has the rows
            shape = [self.rows(request) if size < 0 else size for size in port.shape]
        if buckets is not None and port.name in buckets.padded:
            size = padding.bucket(buckets, padding.length(buckets, request))
            shape[buckets.padded[port.name].axis] = size
        return tuple(shape)

    def _cut(self, array: "NDArray[Any]", port: Port, request: Request) -> "NDArray[Any]":
        """Return an output without what was computed of padding."""
        buckets = self.spec.buckets
        if buckets is None or port.name not in buckets.outputs:
            return array
        axis = buckets.outputs[port.name]
        if axis >= array.ndim:
            raise EngineFailed(f"output '{port.name}' has no dimension {axis} to cut")
        return padding.cut(array, axis, padding.length(buckets, request))

    def threads(self) -> int:
        """Return how many threads one inference may use: of `limits`, or `threads` of the params.

        Raises:
            ModelUnavailable: No number of threads.
        """
        if self.spec.limits is not None and self.spec.limits.threads is not None:
            return self.spec.limits.threads
        threads = self.spec.params.get("threads", 1)
        if not isinstance(threads, int) or not 1 <= threads <= THREADS_MAX:
            raise ModelUnavailable(f"'threads' must be a number from 1 to {THREADS_MAX}")
        return threads

    def check_ports(self) -> None:
        """Refuse a declaration of anything but required tensors.

        Raises:
            ModelUnavailable: Names the input or output.
        """
        for side, ports in (("input", self.spec.inputs), ("output", self.spec.outputs)):
            for port in ports:
                is_mask = self.spec.buckets is not None and port.name == self.spec.buckets.mask
                if port.kind != "tensor" or not (port.required or is_mask):
                    raise ModelUnavailable(
                        f"{side} '{port.name}' must be declared a required tensor"
                    )
                if port.datatype == "BF16" and not self.knows_bf16:
                    raise ModelUnavailable(f"{side} '{port.name}': no BF16 with this engine")


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


def array_of(tensor: Tensor, name: str) -> "NDArray[Any]":
    """Return a tensor as an array that cannot be written to; of BYTES one of str, of BF16 its bits.

    Raises:
        InvalidArgument: An element of BYTES is not UTF-8.
    """
    import numpy as np

    where = f"inputs.{name}"
    if tensor.datatype == "BYTES":
        items = tensors.elements(tensor.data, tensors.count_of(tensor.shape))
        try:
            texts = [item.decode() for item in items]
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"an element of '{name}' is not UTF-8", field=where) from error
        return np.array(texts, object).reshape(tensor.shape)
    if tensor.datatype == "BOOL":
        flags: NDArray[Any] = np.frombuffer(tensor.data, np.uint8) != 0
        return flags.reshape(tensor.shape)
    dtype = datatypes.NUMPY["UINT16" if tensor.datatype == "BF16" else tensor.datatype]
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def tensor_of(array: "NDArray[Any]", port: Port) -> Tensor:
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
        return Tensor(datatype=port.datatype, shape=array.shape, data=data)
    found = datatype_of(array)
    if found != ("UINT16" if port.datatype == "BF16" else port.datatype):
        raise EngineFailed(f"output '{port.name}' is {found}, declared {port.datatype}")
    return Tensor(datatype=port.datatype, shape=array.shape, data=array.tobytes())


def datatype_of(array: "NDArray[Any]") -> str:
    """Return what the Open Inference Protocol calls an array's elements."""
    return datatypes.of_array(array.dtype.str) or str(array.dtype)


def narrows(declared: Sequence[int], found: Sequence[int]) -> bool:
    """Tell whether each shape that is declared is one the model takes; -1 is any size."""
    return len(declared) == len(found) and all(
        size < 0 or size == wanted for wanted, size in zip(declared, found, strict=True)
    )
