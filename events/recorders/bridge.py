"""From the library's threads to NATS: a private event loop with a connection of its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import nats
from eventsourcing.persistence import (
    InterfaceError,
    OperationalError,
    PersistenceError,
    ProgrammingError,
)
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from schemas.errors import ClawdbotError


CALL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
FLIGHTS_MAX = 4
"""Batches in flight at once; a stream's own queue holds 10,000 messages."""

T = TypeVar("T")


class Bridge:
    """Runs coroutines on a loop thread for callers that block.

    Args:
        servers: Addresses of nats-server.
        timeout_s: Longest wait for one call, seconds, > 0.
        options: More arguments for `nats.connect`, such as credentials.

    Raises:
        OperationalError: No server answers.
    """

    def __init__(
        self,
        servers: str | list[str],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.flights = asyncio.Semaphore(FLIGHTS_MAX)
        self._timeout_s = timeout_s
        self._listeners: set[threading.Event] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="events-recorders", daemon=True
        )
        self._thread.start()
        self._nc: Nats | None = None
        try:
            self._nc = self._wait(lambda: self._connect(servers, options or {}))
        except PersistenceError:
            self.close()
            raise

    def run(self, call: Callable[[Nats], Awaitable[T]]) -> T:
        """Run `call(connection)` on the private loop and wait for what it returns.

        Raises:
            ProgrammingError: Called on the private loop, which would wait for itself.
            InterfaceError: The bridge is closed.
            OperationalError: NATS does not answer, or refused.
        """
        nc = self._nc
        assert nc is not None, "the constructor connects or raises"
        return self._wait(lambda: call(nc))

    def listen(self, subject: str, listener: threading.Event) -> Callable[[], None]:
        """Set `listener` at every message on `subject` and after each reconnect.

        Returns:
            A function that ends it; safe to call at any time.
        """

        async def subscribe(nc: Nats) -> Subscription:
            async def on_message(_: Msg) -> None:
                listener.set()

            subscription = await nc.subscribe(subject, cb=on_message)
            await nc.flush()
            return subscription

        subscription = self.run(subscribe)
        self._listeners.add(listener)

        def end() -> None:
            self._listeners.discard(listener)
            if not self._closed:  # a closed connection has no subscriptions left
                self.run(lambda _: subscription.unsubscribe())

        return end

    def close(self) -> None:
        """Close the connection, end the loop and wake every listener; again does nothing."""
        self._refuse_own_loop()
        with self._lock:
            if self._closed:
                return
            self._closed = True  # from here on nothing new is submitted
        try:
            self._result(asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._wake()

    async def _shut_down(self) -> None:
        if self._nc is not None:
            await self._nc.close()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        await asyncio.get_running_loop().shutdown_default_executor()

    def _wait(self, call: Callable[[], Awaitable[T]]) -> T:
        self._refuse_own_loop()

        async def guarded() -> T:
            return await call()

        with self._lock:
            if self._closed:
                raise InterfaceError("the recorder is closed")
            future = asyncio.run_coroutine_threadsafe(guarded(), self._loop)
        return self._result(future)

    def _result(self, future: Future[T]) -> T:
        try:
            return future.result(self._timeout_s)
        except CancelledError as error:
            raise InterfaceError("the recorder was closed meanwhile") from error
        except FutureTimeout as error:
            future.cancel()
            raise OperationalError("NATS does not answer") from error
        except (APIError, NatsError, OSError, ClawdbotError) as error:
            if self._closed:
                raise InterfaceError("the recorder was closed meanwhile") from error
            raise OperationalError(f"NATS refused or does not answer: {error}") from error

    def _refuse_own_loop(self) -> None:
        if threading.current_thread() is self._thread:
            raise ProgrammingError(
                "a recorder waits for its own loop here; call it from another thread"
            )

    async def _connect(self, servers: str | list[str], options: Mapping[str, Any]) -> Nats:
        async def on_reconnect() -> None:
            self._wake()

        async def on_error(_: Exception) -> None:
            self._wake()  # a dropped message was perhaps a notification

        defaults = {"max_reconnect_attempts": -1, "connect_timeout": CONNECT_TIMEOUT_S}
        return await nats.connect(
            servers,
            reconnected_cb=on_reconnect,
            error_cb=on_error,
            **{**defaults, **options},
        )

    def _wake(self) -> None:
        for listener in tuple(self._listeners):
            listener.set()
