"""Blobs: bytes by their SHA-256."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from schemas.api import BlobView
from schemas.errors import InvalidArgument
from schemas.ids import DEFAULT_TENANT
from services.errors import RangeNotSatisfiable
from services.gateway.inputs import blob_media_type
from services.gateway.routes import ERRORS, Wanted, answer


router = APIRouter(prefix="/v1", tags=["blobs"], responses=ERRORS)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}


@router.post(
    "/blobs",
    response_model=BlobView,
    status_code=201,
    openapi_extra={"requestBody": {"required": True, **_BYTES}},
)
async def put_blob(
    request: Request, parts: Wanted, content_type: Annotated[str | None, Header()] = None
) -> Response:
    """Keep bytes; the same bytes again are the same blob."""
    media_type = blob_media_type(content_type)
    data = await request.body()
    if not data:
        raise InvalidArgument("send the bytes as the body", field="body")
    async with parts.bus.prompt(parts.settings.blob_s_max):
        ref = await parts.blobs.put(DEFAULT_TENANT, data, media_type)
    location = f"/v1/blobs/{ref.sha256}"
    return answer(BlobView.model_validate(ref.model_dump()), 201, {"Location": location})


@router.head("/blobs/{sha256}", response_class=Response, include_in_schema=False)
@router.get(
    "/blobs/{sha256}",
    response_class=Response,
    responses={200: _BYTES, 206: {**_BYTES, "description": "The range asked for"}},
)
async def get_blob(
    request: Request,
    parts: Wanted,
    sha256: str,
    range_: Annotated[str | None, Header(alias="range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return a blob, or one range of it."""
    if not _SHA256.fullmatch(sha256):
        raise InvalidArgument("a blob is named by 64 lower-case hex digits", field="sha256")
    etag = f'"{sha256}"'
    async with parts.bus.prompt(parts.settings.blob_s_max):
        data, media_type = await parts.blobs.get(DEFAULT_TENANT, sha256)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": "attachment",
        "Content-Type": media_type,
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers=headers)
    status, body = 200, data
    span = _span(range_, len(data))
    if span is not None:
        first, last = span
        status, body = 206, data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    if request.method == "HEAD":
        headers["Content-Length"] = str(len(body))
        body = b""
    return Response(body, status, headers=headers)


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first and last byte of a range; None for all of it.

    A header that is malformed or asks for several ranges is ignored, as RFC 9110 section 14.2
    allows.

    Raises:
        RangeNotSatisfiable: It begins behind the end.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        start, end = size - length, size - 1
    else:
        start, end = int(first), min(int(last) if last else size - 1, size - 1)
        if last and int(last) < start:
            return None
    if start >= size or end < start:
        raise RangeNotSatisfiable(size)
    return start, end
