"""One request to an address outside, with httpx; redirects are not followed here.

Every call resolves the name, checks all its addresses (`addresses`), and connects to one of those.
A connection serves one call, and is closed when the call is cancelled.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
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
"""Longest wait for the next bytes, where no setting says otherwise; the attempt's own time is
mostly shorter."""


@dataclass(frozen=True)
class Call:
    """One request, as it goes out."""

    method: str
    url: Any
    headers: dict[str, str]
    content: bytes | None


@dataclass(frozen=True)
class Answer:
    """What comes back; the body is read as it comes, and no further than the limit."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    """Raises `EngineFailed` where there are more bytes than are taken."""

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks])


@dataclass(frozen=True)
class Caller:
    """Sends requests.

    Args:
        allowed: What may be reached besides the public network.
        bytes_max: Of an answer.
        setting: The variable with which an operator allows larger answers.
        silence_s: Longest wait for the next bytes.
    """

    allowed: addresses.Allowed
    bytes_max: int
    tls: ssl.SSLContext
    setting: str = "CLAWDBOT_HTTP_BYTES_MAX"
    silence_s: float = SILENCE_S

    async def send(self, call: Call) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request, and read the whole answer.

        Returns:
            Status, headers and body.

        Raises:
            ClawdbotError: As `asking` does.
        """
        async with self.asking(call) as answer:
            return answer.status, answer.headers, await answer.read()

    @asynccontextmanager
    async def asking(self, call: Call) -> AsyncIterator[Answer]:
        """Send one request to the first address that takes the connection, closed at the end.

        Raises:
            PermissionDenied: The address may not be reached.
            Unavailable: It cannot be reached now, was silent for too long, or broke off; retryable.
            InvalidArgument: It cannot be sent.
            EngineFailed: The answer is too large, or compressed.
        """
        import httpx

        host, answered = call.url.host, False
        try:
            async with AsyncExitStack() as stack:
                response = await self._first(call, stack)
                answered = True
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise EngineFailed("the answer is compressed, which nobody asked for")
                raw = await stack.enter_async_context(aclosing(response.aiter_raw()))
                chunks = await stack.enter_async_context(aclosing(self._bounded(raw)))
                yield Answer(response.status_code, response.headers, chunks)
        except httpx.TimeoutException as error:
            silent = f"{host} was silent for {self.silence_s:g} seconds in its answer"
            late = silent if answered else f"{host} did not answer in time"
            raise Unavailable(late) from error
        except httpx.TransportError as error:
            failed = "broke off its answer" if answered else "cannot be reached"
            text = f"{host} {failed}: {str(error) or type(error).__name__}"
            raise Unavailable(text) from error

    async def _first(self, call: Call, stack: AsyncExitStack) -> Any:
        """Return the response, without its body, of the first address that is there."""
        import httpx

        host = call.url.host
        port = call.url.port or (443 if call.url.scheme == "https" else 80)
        try:
            found = await addresses.resolve(host, port, self.allowed)
            for address in found:
                try:
                    return await self._send(call, address, stack)
                except httpx.ConnectError:
                    if address == found[-1]:
                        raise
        except httpx.TransportError:
            raise
        except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as error:
            raise InvalidArgument(f"the request cannot be sent: {error}", field="url") from error
        raise Unavailable(f"the name '{host}' has no address")

    async def _send(self, call: Call, address: str, stack: AsyncExitStack) -> Any:
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
                "timeout": httpx.Timeout(self.silence_s, connect=CONNECT_S).as_dict(),
            },
        )
        transport = httpx.AsyncHTTPTransport(verify=self.tls, trust_env=False)
        await stack.enter_async_context(transport)
        response = await transport.handle_async_request(request)
        stack.push_async_callback(response.aclose)
        return response

    async def _bounded(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        count = 0
        async for chunk in chunks:
            count += len(chunk)
            if count > self.bytes_max:
                raise EngineFailed(
                    f"the answer has more than {self.bytes_max} bytes; the workers' setting "
                    f"{self.setting} allows more"
                )
            yield chunk


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
