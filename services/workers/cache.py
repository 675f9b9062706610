"""The models in a worker's memory: loaded once for all who ask, leased by those who compute.

What a model takes is measured when it loads. Where there is a budget, the model goes whose loss
would cost least: the time to load it, times how often it is used lately, for each byte. Nothing
that is leased is ever unloaded; what must go gets no new leases, and goes with its last one.

Everything here runs on the event loop; loading and closing run in threads.

Source: greedy-dual-size caching (Cao & Irani, USENIX 1997), with use that fades instead of an age.
"""

import asyncio
import contextlib
import time
from concurrent.futures import CancelledError, Future

from schemas.errors import ModelUnavailable
from services.telemetry import CACHE, LOAD_SECONDS, MODEL_BYTES, get_logger
from services.workers.loaded import Loaded
from services.workers.memory import MIB, NOTHING, Budget, Size
from services.workers.wanted import Room, Shop, Wanted


AHEAD_MAX = 8
"""Models that wait to be loaded, above which none is loaded ahead of need."""
MEASURE_AGAIN_S = 60.0
"""A model that was found too large is measured anew after this long: others work meanwhile."""
log = get_logger()


class Cache:
    """Keeps models in memory.

    Args:
        shop: Loads and closes.
        budget: What all models together may take.
    """

    def __init__(self, shop: Shop, budget: Budget) -> None:
        self._shop = shop
        self._budget = budget
        self._residents: dict[str, Loaded] = {}
        self._leaving: set[Loaded] = set()
        """Unloaded as soon as nobody uses them."""
        self._wanted: dict[str, Wanted] = {}
        """In order of arrival."""
        self._sizes: dict[str, Size] = {}
        """What each model took when it was last loaded."""
        self._past: dict[str, tuple[float, float, float]] = {}
        """Use, as of when, and cost of models that were in memory."""
        self._too_large: dict[str, float] = {}
        """Until when the size of a model that does not fit is believed."""
        self._used = NOTHING
        """Of all that is in memory, and of what is being loaded."""
        self._loading = 0
        self._is_closed = False
        self._hits = 0
        """Since they were last reported."""

    @property
    def residents(self) -> dict[str, Loaded]:
        """The models in memory, by name."""
        return dict(self._residents)

    @property
    def used(self) -> Size:
        """What all models take now, those on their way in and out counted."""
        return self._used

    def get(self, name: str) -> Loaded | None:
        """Return a model that is in memory, without a lease."""
        return self._residents.get(name)

    def take(self, name: str, now: float) -> Loaded | None:
        """Lease a model that is in memory; `release` it."""
        loaded = self._residents.get(name)
        if loaded is not None:
            loaded.take(now)
            self._hits += 1
        return loaded

    def report(self) -> None:
        """Add what was counted since to the metrics: too often to do it each time."""
        hits, self._hits = self._hits, 0
        CACHE.labels("hit").inc(hits)

    async def obtain(self, name: str) -> Loaded:
        """Lease a model, loading it first; `release` it.

        Raises:
            ModelUnavailable: It cannot be loaded, or does not fit.
        """
        loaded = self.take(name, time.perf_counter())
        if loaded is not None:
            return loaded
        CACHE.labels("miss").inc()
        waiter: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(name, Wanted()).waiters.append(waiter)
        self._advance()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def prefetch(self, name: str) -> None:
        """Begin to load a model that will be asked for, if there is room without waiting."""
        if name in self._residents or name in self._wanted or len(self._wanted) >= AHEAD_MAX:
            return
        CACHE.labels("prefetch").inc()
        self._wanted[name] = Wanted(ahead=True)
        self._advance()

    def release(self, loaded: Loaded) -> None:
        """Give a lease back."""
        loaded.leases -= 1
        if loaded in self._leaving or self._wanted:
            self.settle(loaded)

    def settle(self, loaded: Loaded) -> None:
        """Unload what must go, once nobody uses it; begin what waited for that."""
        if loaded in self._leaving:
            if loaded.is_idle and not loaded.is_closing:
                self._close(loaded)
        elif self._wanted:
            self._advance()

    def put(self, loaded: Loaded) -> None:
        """Keep a model that is loaded already."""
        self._residents[loaded.name] = loaded
        self._sizes[loaded.name] = loaded.size
        self._used += loaded.size
        _show(loaded.name, loaded.size)

    def drop(self, name: str) -> None:
        """Forget a model whose entry changed: who uses it finishes, whoever asks next loads anew.

        What the entry had measured is forgotten too.
        """
        self._sizes.pop(name, None)
        wanted = self._wanted.get(name)
        if wanted is not None and wanted.begun:
            wanted.stale = True
        loaded = self._residents.get(name)
        if loaded is not None:
            self._retire(loaded)
        self._past.pop(name, None)

    def close(self) -> None:
        """Unload everything at once, in this thread; nobody may compute any more."""
        self._is_closed = True
        stopping = ModelUnavailable("this worker is stopping; try again")
        for wanted in self._wanted.values():
            wanted.fail(stopping)
        self._wanted.clear()
        for loaded in (*self._residents.values(), *self._leaving):
            loaded.engine.close()
        self._residents.clear()
        self._leaving.clear()

    # ------------------------------------------------------------ loading

    def _advance(self) -> None:
        """Begin the loads whose turn it is: first come, first served, ahead of need last."""
        for name, wanted in sorted(self._wanted.items(), key=lambda item: not item[1].waiters):
            if wanted.begun:
                continue
            if not wanted.is_wanted:
                del self._wanted[name]
                continue
            if self._loading >= self._shop.loads_max:
                return
            try:
                room = self._make_room(name, wanted)
            except ModelUnavailable as error:
                del self._wanted[name]
                self._refuse(wanted, error)
                continue
            if room is Room.NOW:
                self._begin(name, wanted)
            elif room is Room.NEVER:
                del self._wanted[name]  # ahead of need: not at the price of who computes now
            else:
                return  # when somebody has left, it is tried again

    def _begin(self, name: str, wanted: Wanted) -> None:
        loop = asyncio.get_running_loop()
        wanted.begun, wanted.stale = True, False
        self._loading += 1
        self._used += wanted.need

        def over(job: "Future[Loaded]") -> None:
            try:
                loop.call_soon_threadsafe(self._loaded, name, wanted, job)
            except RuntimeError:  # the loop is gone, and everybody with it
                if not job.cancelled() and job.exception() is None:
                    job.result().engine.close()

        try:
            job = self._shop.threads.submit(self._shop.open, name)
        except RuntimeError:  # the threads are shut down
            job = Future()
            job.cancel()
        job.add_done_callback(over)

    def _loaded(self, name: str, wanted: Wanted, job: "Future[Loaded]") -> None:
        """Hand a model to those who waited for it."""
        self._loading -= 1
        self._used -= wanted.need
        wanted.begun = False
        try:
            loaded = job.result()
        except CancelledError:
            self._failed(name, wanted, ModelUnavailable("this worker is stopping; try again"))
            return
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            self._failed(name, wanted, error)
            return
        self._used += loaded.size
        self._leaving.add(loaded)
        if wanted.stale or self._is_closed:
            self._close(loaded)  # and begin again, with what the entry says now
            return
        self._wanted.pop(name, None)
        self._sizes[name] = loaded.size
        try:
            room = self._make_room(name, wanted, inside=True)
        except ModelUnavailable as error:
            self._refuse(wanted, error)
            room = Room.NEVER
        if room is Room.NEVER:
            self._close(loaded)
            return
        self._leaving.discard(loaded)
        self._welcome(loaded, wanted)
        self._advance()

    def _refuse(self, wanted: Wanted, error: ModelUnavailable) -> None:
        CACHE.labels("refused").inc()
        wanted.fail(error)

    def _failed(self, name: str, wanted: Wanted, error: Exception) -> None:
        if self._wanted.get(name) is wanted and not wanted.stale:
            del self._wanted[name]
            if not wanted.waiters:
                log.warning("model_not_loaded", model=name, error=str(error))
            wanted.fail(error)
        self._advance()

    def _welcome(self, loaded: Loaded, wanted: Wanted) -> None:
        now = time.perf_counter()
        self._residents[loaded.name] = loaded
        log.info(
            "model_loaded",
            model=loaded.name,
            load_ms=round(loaded.load_s * 1000, 1),
            warm_ms=round(loaded.warm_s * 1000, 1),
            calibrate_ms=round(loaded.calibrate_s * 1000, 1),
            size_bytes=loaded.size_bytes,
            device_bytes=loaded.device_bytes,
            devices=loaded.engine.devices(),
            ahead=wanted.ahead,
        )
        _show(loaded.name, loaded.size)
        LOAD_SECONDS.labels(loaded.name).observe(loaded.load_s + loaded.warm_s)
        loaded.cost_s = loaded.load_s + loaded.warm_s
        if loaded.name in self._past:
            loaded.use, loaded.used_at, cost_s = self._past[loaded.name]
            loaded.cost_s = min(loaded.cost_s, cost_s)
        loaded.use += float(wanted.ahead)
        for waiter in wanted.waiters:
            if not waiter.done():
                loaded.take(now)
                waiter.set_result(loaded)

    # ------------------------------------------------------------ room

    def _make_room(self, name: str, wanted: Wanted, *, inside: bool = False) -> Room:
        """Have others go until a model fits; tell when it does.

        Args:
            name: The model.
            wanted: Who wants it. For one that nobody waits for, only idle models go.
            inside: Whether its bytes are counted already.

        Raises:
            ModelUnavailable: It is larger than the whole budget.
        """
        if not self._budget:
            return Room.NOW
        now = time.perf_counter()
        wanted.need = need = self._need(name, now)
        over = self._budget.over(self._used if inside else self._used + need)
        if over.fits:
            return Room.NOW
        for loaded in self._leaving:
            over -= loaded.size if loaded.name != name else NOTHING
        known = list(self._residents.values())
        if not wanted.waiters:
            known = [item for item in known if item.is_idle]
            if not sum((item.size for item in known), start=NOTHING).covers(over):
                return Room.NEVER
        known.sort(key=lambda item: (not item.is_idle, item.worth(now)))
        for loaded in known:
            if not loaded.size.helps(over):
                continue
            over -= loaded.size
            loaded.counters.eviction_count += 1
            CACHE.labels("eviction").inc()
            self._retire(loaded)
        return Room.SOON

    def _need(self, name: str, now: float) -> Size:
        """Return what a model takes, as far as that is known.

        Raises:
            ModelUnavailable: It is larger than the whole budget.
        """
        need = self._sizes.get(name) or self._shop.estimate(name)
        over = self._budget.over(need)
        if over.fits:
            return need
        if now > self._too_large.setdefault(name, now + MEASURE_AGAIN_S):
            del self._too_large[name]
            self._sizes.pop(name, None)
        takes, most, setting = (
            (need.host, self._budget.host, "CLAWDBOT_MODEL_MEMORY_BYTES_MAX")
            if over.host > 0
            else (need.device, self._budget.device, "CLAWDBOT_MODEL_DEVICE_MEMORY_BYTES_MAX")
        )
        raise ModelUnavailable(
            f"model '{name}' takes {takes / MIB:.1f} MiB, all models of this worker together "
            f"may take {(most or 0) / MIB:.1f} ({setting})"
        )

    def _retire(self, loaded: Loaded) -> None:
        """Give out no more leases; unload it when those that are out are back."""
        del self._residents[loaded.name]
        self._leaving.add(loaded)
        self._past[loaded.name] = loaded.use, loaded.used_at, loaded.cost_s
        if loaded.is_idle:
            self._close(loaded)

    def _close(self, loaded: Loaded) -> None:
        loop = asyncio.get_running_loop()
        loaded.is_closing = True

        def over(_: "Future[None]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(self._closed, loaded)

        try:
            job = self._shop.threads.submit(self._shop.close, loaded)
        except RuntimeError:  # the threads are shut down; `close` does it
            return
        job.add_done_callback(over)

    def _closed(self, loaded: Loaded) -> None:
        self._leaving.discard(loaded)
        self._used -= loaded.size
        if loaded.name not in self._residents:
            _show(loaded.name, NOTHING)
        self._advance()


def _show(name: str, size: Size) -> None:
    """Have the metrics say what a model takes."""
    MODEL_BYTES.labels(name, "host").set(size.host)
    MODEL_BYTES.labels(name, "device").set(size.device)
