"""One request to an address outside, with httpx; redirects are not followed here.

Every call resolves the name, checks all its addresses (`addresses`), and connects to one of those.
A connection serves one call, and is closed when the call is cancelled.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import EngineFailed, InvalidArgument, PermissionDenied, Unavailable
from services.workers.engines import addresses


MIB = 1024 * 1024
RESPONSE_BYTES_MAX = 8 * MIB
"""Where no setting says otherwise."""
URL_CHARS_MAX = 8192
CONNECT_S = 10.0
SILENCE_S = 300.0
"""Longest wait for the next bytes; the attempt's own time is mostly shorter."""


@dataclass(frozen=True)
class Call:
    """One request, as it goes out."""

    method: str
    url: Any
    headers: dict[str, str]
    content: bytes | None


@dataclass(frozen=True)
class Caller:
    """Sends requests.

    Args:
        allowed: What may be reached besides the public network.
        bytes_max: Of an answer.
        setting: The variable with which an operator allows larger answers.
    """

    allowed: addresses.Allowed
    bytes_max: int
    tls: ssl.SSLContext
    setting: str = "CLAWDBOT_HTTP_BYTES_MAX"

    async def send(self, call: Call) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request to the first address that takes the connection.

        Returns:
            Status, headers and body.

        Raises:
            PermissionDenied: The address may not be reached.
            Unavailable: It cannot be reached now, or did not answer in time; retryable.
            InvalidArgument: It cannot be sent.
            EngineFailed: The answer is too large, or compressed.
        """
        import httpx

        try:
            return await self._once(call)
        except httpx.TimeoutException as error:
            raise Unavailable(f"{call.url.host} did not answer in time") from error
        except httpx.TransportError as error:
            text = f"{call.url.host} cannot be reached: {str(error) or type(error).__name__}"
            raise Unavailable(text) from error
        except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as error:
            raise InvalidArgument(f"the request cannot be sent: {error}", field="url") from error

    async def _once(self, call: Call) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        host = call.url.host
        port = call.url.port or (443 if call.url.scheme == "https" else 80)
        found = await addresses.resolve(host, port, self.allowed)
        for address in found:
            try:
                return await self._send(call, address)
            except httpx.ConnectError:
                if address == found[-1]:
                    raise
        raise Unavailable(f"the name '{host}' has no address")

    async def _send(self, call: Call, address: str) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        host = call.url.netloc.decode("ascii")
        headers = {**call.headers, "Host": host, "Accept-Encoding": "identity"}
        request = httpx.Request(
            call.method,
            call.url.copy_with(host=address),
            headers=headers,
            content=call.content,
            extensions={
                "sni_hostname": call.url.host,
                "timeout": httpx.Timeout(SILENCE_S, connect=CONNECT_S).as_dict(),
            },
        )
        async with httpx.AsyncHTTPTransport(verify=self.tls, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            try:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise EngineFailed("the answer is compressed, which nobody asked for")
                body = await self._read(response.aiter_raw())
            finally:
                await response.aclose()
        return response.status_code, response.headers, body

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > self.bytes_max:
                raise EngineFailed(
                    f"the answer has more than {self.bytes_max} bytes; the workers' setting "
                    f"{self.setting} allows more"
                )
        return bytes(body)


def url_of(text: object) -> Any:
    """Return the address in a text.

    Raises:
        InvalidArgument: It is none.
        PermissionDenied: It carries credentials, or is not HTTP.
    """
    import httpx

    if not isinstance(text, str) or not 0 < len(text) <= URL_CHARS_MAX:
        raise InvalidArgument(f"a url is a text of at most {URL_CHARS_MAX} characters", field="url")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidArgument(f"not a url: {error}", field="url") from error
    if url.scheme not in {"http", "https"}:
        raise PermissionDenied("only http and https are called", field="url")
    if url.userinfo:
        raise PermissionDenied("a url carries no credentials; send a header instead", field="url")
    if not url.host or "%" in url.host or not 0 < (url.port or 80) < 65536:  # noqa: PLR2004
        raise InvalidArgument("the url names no host and port", field="url")
    return url.copy_with(fragment=None)
