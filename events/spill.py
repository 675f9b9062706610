"""Large values leave the message and become blobs; workers fetch them back.

A tensor that spills keeps its datatype and shape in the blob's media type.
"""

import re

from events.blobs import BlobStore
from schemas.errors import DataLoss, InvalidArgument
from schemas.values import (
    INLINE_BYTES_MAX,
    Binary,
    BlobRef,
    Tensor,
    Value,
    Wire,
    from_wire,
    to_wire,
)


TENSOR_TYPE = "application/vnd.clawdbot.tensor"
_TENSOR = re.compile(re.escape(TENSOR_TYPE) + r";datatype=(\w+);shape=([\dx]*)")
COMMIT_BYTES_MAX = 512 * 1024


async def spill(wire: Wire, tenant: str, blobs: BlobStore) -> Wire:
    """Put every value over INLINE_BYTES_MAX into the blob store.

    Raises:
        InvalidArgument: Plain JSON too large for a commit; upload it as a blob.
        StoreFull, StoreUnavailable: The blob store cannot take it.
    """
    kept: Wire = {}
    for name, item in wire.items():
        value = from_wire(item, field=name)
        match value:
            case Binary(media_type=media_type, data=data) if len(data) > INLINE_BYTES_MAX:
                kept[name] = to_wire(await blobs.put(tenant, data, media_type))
            case Tensor(data=data) if len(data) > INLINE_BYTES_MAX:
                kept[name] = to_wire(await blobs.put(tenant, data, _tensor_type(value)))
            case str() if len(value) > COMMIT_BYTES_MAX:
                raise InvalidArgument(
                    f"a text holds at most {COMMIT_BYTES_MAX} characters", field=f"inputs.{name}"
                )
            case _:
                kept[name] = item
    return kept


async def fetch(wire: Wire, tenant: str, blobs: BlobStore) -> dict[str, Value]:
    """Return values with every blob read back into bytes or a tensor.

    Raises:
        NotFound: A blob is not there.
        DataLoss: A blob is altered.
        StoreUnavailable: The blob store does not answer.
    """
    values: dict[str, Value] = {}
    for name, item in wire.items():
        value = from_wire(item, field=f"inputs.{name}")
        if isinstance(value, BlobRef):
            data, media_type = await blobs.get(tenant, value.sha256)
            value = restore_blob(value.media_type or media_type, data)
        values[name] = value
    return values


def _tensor_type(tensor: Tensor) -> str:
    shape = "x".join(str(size) for size in tensor.shape)
    return f"{TENSOR_TYPE};datatype={tensor.datatype};shape={shape}"


def restore_blob(media_type: str, data: bytes) -> Value:
    """Return the value that a blob was made of: bytes, or a tensor.

    Raises:
        DataLoss: The media type is not one that `spill` writes.
    """
    if not media_type.startswith(TENSOR_TYPE):
        return Binary(media_type=media_type, data=data)
    found = _TENSOR.fullmatch(media_type)
    if found is None:
        raise DataLoss("the blob's media type is no tensor's")
    shape = tuple(int(size) for size in found[2].split("x") if size)
    return Tensor(datatype=found[1], shape=shape, data=data)
