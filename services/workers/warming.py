"""The requests that a model computes before anybody waits for it.

The first inference of a runtime plans memory, compiles kernels and wakes the device. So a model
that was loaded computes what its catalogue entry says, or zeros of its signature.
"""

import math
from collections.abc import Iterator, Sequence

from schemas import tensors
from schemas.catalogue import ModelSpec
from schemas.errors import ClawdbotError, ModelUnavailable
from schemas.values import Tensor, from_json, from_wire
from services.telemetry import get_logger
from services.workers.engine import Engine, Request


ZEROS_BYTES_MAX = 16 * 1024 * 1024
"""Largest request of zeros that is made up for a model that declares no warm-up."""
log = get_logger()


def warm(engine: Engine) -> list[Request]:
    """Have an engine compute its warm-up requests; return those that it can compute.

    Raises:
        ModelUnavailable: It cannot compute one that its catalogue entry declares.
    """
    spec = engine.spec
    if spec.warm_up is None:
        made_up = list(zeros(spec)) if engine.blocking else []
        try:
            engine.warm(made_up)
        except ClawdbotError as error:  # zeros need not make sense to a model
            log.info("warm_up_refused", engine=spec.engine, error=error.message)
            return []
        return made_up
    try:
        requests = list(declared(spec))
        engine.warm(requests)
    except ClawdbotError as error:
        raise ModelUnavailable(f"its warm_up fails: {error.message}") from error
    return requests


def declared(spec: ModelSpec) -> Iterator[Request]:
    """Yield the requests that a catalogue entry declares.

    Raises:
        InvalidArgument: An input is malformed.
    """
    for wanted in spec.warm_up or ():
        wire = from_json(wanted.inputs, field="warm_up.inputs")
        inputs = {name: from_wire(item, field=name) for name, item in wire.items()}
        yield Request(inputs, {**spec.params, **wanted.params})


def zeros(spec: ModelSpec) -> Iterator[Request]:
    """Yield a row of zeros of each length that is computed, where the signature says enough."""
    if not spec.inputs or any(port.kind != "tensor" for port in spec.inputs):
        return
    padded = {} if spec.buckets is None else spec.buckets.padded
    for size in (1,) if spec.buckets is None else spec.buckets.sizes:
        inputs = {}
        for port in spec.inputs:
            shape = [1 if wanted < 0 else wanted for wanted in port.shape]
            if port.name in padded:
                shape[padded[port.name].axis] = size
            if port.required:
                inputs[port.name] = _zeros(port.datatype, shape)
        if not all(inputs.values()):
            return
        yield Request(inputs, spec.params)


def _zeros(datatype: str, shape: Sequence[int]) -> Tensor | None:
    count = math.prod(shape)
    size_bytes = tensors.DATATYPE_SIZES.get(datatype, 4)  # BYTES: an empty text's length
    if count * size_bytes > ZEROS_BYTES_MAX:
        return None
    return Tensor(datatype=datatype, shape=tuple(shape), data=bytes(count * size_bytes))
