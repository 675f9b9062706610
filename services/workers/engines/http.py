"""Calls an address outside, with httpx: an activity like any model's.

Redirects are followed here, one by one, each checked like the first; how a call goes out is in
`calls`.
"""

import ssl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from typing_extensions import override

from schemas.catalogue import ModelSpec
from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from schemas.structures import check_header
from schemas.values import Binary, Value
from services.workers.engine import AsyncEngine, Request
from services.workers.engines import addresses
from services.workers.engines.calls import MIB, RESPONSE_BYTES_MAX, Call, Caller, url_of
from services.workers.engines.fields import missing_package


REQUEST_BYTES_MAX = 16 * MIB
REDIRECTS_MAX = 5
REDIRECTS = {301, 302, 303, 307, 308}
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same call may succeed."""
_KINDS: dict[int, type[ClawdbotError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    410: NotFound,
    429: ResourceExhausted,
}
_SECRETS = ("authorization", "cookie", "proxy-authorization", "x-api-key")
"""Headers that another origin does not get."""


def _redirected(call: Call, location: Any, status: int) -> Call:
    """Return the call that follows a redirect. Source: RFC 9110, 15.4.

    Raises:
        PermissionDenied: From https to http.
    """
    if call.url.scheme == "https" and location.scheme != "https":
        raise PermissionDenied("a redirect leads from https to http", field="url")
    origins = [(url.scheme, url.host, url.port) for url in (call.url, location)]
    turns_to_get = status == 303 or (status in {301, 302} and call.method == "POST")  # noqa: PLR2004
    call = replace(call, url=location)
    if turns_to_get and call.method != "GET":
        headers = {k: v for k, v in call.headers.items() if k.lower() != "content-type"}
        call = replace(call, method="GET", content=None, headers=headers)
    if origins[0] != origins[1]:
        kept = {k: v for k, v in call.headers.items() if k.lower() not in _SECRETS}
        call = replace(call, headers=kept)
    return call


class HttpEngine(AsyncEngine):
    """Gives `status`, `headers` and `body` of the answer.

    Parameters of the spec: `allow` and `bytes_max`, the operator's settings. Parameters and inputs
    of the request: see `schemas.structures.HttpParams`.
    """

    def __init__(self, spec: ModelSpec, models_dir: Path) -> None:
        super().__init__(spec, models_dir)
        self._allowed = addresses.Allowed.parse(str(spec.params.get("allow", "")))
        self._bytes_max = int(spec.params.get("bytes_max", RESPONSE_BYTES_MAX))
        self._caller: Caller

    @override
    def missing(self) -> str | None:
        return missing_package("httpx")

    @override
    def load(self) -> None:
        self._caller = Caller(self._allowed, self._bytes_max, ssl.create_default_context())

    @override
    async def answer(self, request: Request) -> Mapping[str, Value]:
        call = _call(request)
        for _ in range(REDIRECTS_MAX + 1):
            status, headers, body = await self._caller.send(call)
            if status not in REDIRECTS or "location" not in headers:
                accepted = request.params.get("accept", ())
                return _outputs(status, headers, body, accepted)
            call = _redirected(call, url_of(_joined(call.url, headers["location"])), status)
        raise FailedPrecondition(f"more than {REDIRECTS_MAX} redirects", field="url")


def _joined(url: Any, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        InvalidArgument: Nowhere.
    """
    import httpx

    try:
        return str(url.join(location))
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidArgument(f"the request cannot be sent: {error}", field="url") from error


def _call(request: Request) -> Call:
    """Return what a request asks for.

    Raises:
        InvalidArgument: The address or the body is malformed.
        PermissionDenied: The address carries credentials, or is not HTTP.
    """
    params, inputs = request.params, request.inputs
    url = url_of(inputs.get("url", params.get("url")))
    query = inputs.get("query")
    if isinstance(query, Mapping):
        url = url.copy_merge_params({name: _text(value) for name, value in query.items()})
    content, media_type = _content(inputs.get("body"))
    headers = {"User-Agent": "clawdbot", **_headers(params), **_headers(inputs)}
    names = {name.lower() for name in headers}
    if media_type and "content-type" not in names:
        headers["Content-Type"] = media_type
    if request.key and "idempotency-key" not in names:
        headers["Idempotency-Key"] = request.key
    return Call(params.get("method", "GET"), url, headers, content)


def _headers(source: Mapping[str, Any]) -> dict[str, str]:
    found = source.get("headers") or {}
    if not isinstance(found, Mapping):
        raise InvalidArgument("headers are an object of texts", field="headers")
    try:
        return {name: check_header(name, _text(value)) for name, value in found.items()}
    except ValueError as error:
        raise InvalidArgument(str(error), field="headers") from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    raise InvalidArgument("headers and query are texts, numbers or truth values", field="headers")


def _content(body: Value) -> tuple[bytes | None, str]:
    """Return the bytes of a body and their media type."""
    match body:
        case None:
            return None, ""
        case Binary(media_type=media_type, data=data):
            content = data
        case str():
            content, media_type = body.encode(), "text/plain; charset=utf-8"
        case _:
            try:
                content, media_type = orjson.dumps(body), "application/json"
            except TypeError as error:
                raise InvalidArgument("the body is no JSON, text or bytes", field="body") from error
    if len(content) > REQUEST_BYTES_MAX:
        raise InvalidArgument(f"a body has at most {REQUEST_BYTES_MAX} bytes", field="body")
    return content, media_type


def _outputs(
    status: int, headers: Mapping[str, str], body: bytes, accepted: Any
) -> Mapping[str, Value]:
    """Return the outputs of an answer.

    Raises:
        Unavailable, ResourceExhausted: The status says that it may work later; retryable.
        ClawdbotError: The status says that it will not.
    """
    if not 200 <= status < 300 and status not in accepted:  # noqa: PLR2004 - success
        excerpt = " ".join(body[:200].decode(errors="replace").split())
        message = f"the answer's status is {status}: {excerpt}".rstrip(": ")
        kind = _KINDS.get(status, Unavailable if status in TRANSIENT else FailedPrecondition)
        raise kind(message)
    media_type = headers.get("content-type", "application/octet-stream")
    return {
        "status": status,
        "headers": {name.lower(): value for name, value in headers.items()},
        "body": _decoded(body, media_type),
    }


def _decoded(body: bytes, media_type: str) -> Value:
    """Return JSON as what it says, text as text, and anything else as bytes."""
    essence, _, rest = media_type.partition(";")
    essence = essence.strip().lower()
    if not body:
        return None
    if essence == "application/json" or essence.endswith("+json"):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise EngineFailed("the answer says it is JSON and is not") from error
    if essence.startswith("text/"):
        charset = rest.partition("charset=")[2].strip("\"' ") or "utf-8"
        try:
            return body.decode(charset, errors="replace")
        except LookupError:
            return body.decode(errors="replace")
    try:
        return Binary(media_type=essence, data=body)
    except ValueError:
        return Binary(media_type="application/octet-stream", data=body)
