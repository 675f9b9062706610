"""Clients that submit runs over HTTP, never try again, and remember what they were told."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from schemas.ids import new_id
from tests.support.wait import until


CLIENTS = 8
PAUSE_S = 0.05
ECHO = {"nodes": [{"id": "a", "type": "model", "params": {"model": "echo"}}]}


@dataclass
class Clients:
    """Submit runs of `echo` until told to stop.

    Args:
        url: Of the gateway.
        text_bytes: How long each run's text is, beside its id.
        wait_s: How long an answer may wait for the end of the run.
    """

    url: str
    text_bytes: int = 0
    wait_s: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    accepted: dict[str, str] = field(default_factory=dict)
    """The text of each accepted run."""
    told_at: list[float] = field(default_factory=list)
    """When each was accepted, or was over when that was waited for, monotonic seconds."""
    took_s: list[float] = field(default_factory=list)
    """How long each of these answers took."""
    refused: list[tuple[int, float]] = field(default_factory=list)
    """Status and seconds of each refusal."""

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Deploy, then submit until the block is left."""
        deployed = httpx.post(
            f"{self.url}/v1/workflows", json={"name": "echo", "definition": ECHO}, timeout=30
        )
        assert deployed.is_success, deployed.text
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._submit) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                self.over.set()
        for client in clients:
            client.result()

    async def enough(self, more: int, *, timeout_s: float = 60) -> None:
        """Wait until so many more runs were accepted."""
        wanted = len(self.accepted) + more

        async def there() -> bool:
            return len(self.accepted) >= wanted

        await until(there, what=f"{more} more accepted runs", timeout_s=timeout_s)

    async def refusals(self, more: int, *, timeout_s: float = 60) -> None:
        """Wait until so many more were refused."""
        wanted = len(self.refused) + more

        async def there() -> bool:
            return len(self.refused) >= wanted

        await until(there, what=f"{more} more refusals", timeout_s=timeout_s)

    def gap_s(self, since: float) -> float:
        """Return the longest time without such an answer since a moment, seconds."""
        moments = [since, *(moment for moment in sorted(self.told_at) if moment > since)]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    async def all_complete(self, *, timeout_s: float = 90) -> None:
        """Wait until every accepted run is over; each must give back its own text."""
        open_runs = dict(self.accepted)
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:

            async def none_open() -> bool:
                for run_id, text in list(open_runs.items()):
                    run = (await http.get(f"/v1/runs/{run_id}")).json()
                    if run.get("status", "accepted") not in {"accepted", "running"}:
                        assert run["outputs"] == {"a": {"text": text}}, run["status"]
                        del open_runs[run_id]
                return not open_runs

            await until(none_open, what="the end of every accepted run", timeout_s=timeout_s)

    def _submit(self) -> None:
        path = f"/v1/workflows/echo/runs?wait={self.wait_s}"
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self.over.is_set():
                text = new_id() + "x" * self.text_bytes
                begun = time.monotonic()
                answer = http.post(path, json={"inputs": {"text": text}})
                now = time.monotonic()
                if answer.is_success:
                    self.accepted[answer.json()["run_id"]] = text
                    if not self.wait_s or answer.json()["status"] == "completed":
                        self.told_at.append(now)
                        self.took_s.append(now - begun)
                    continue
                assert "Retry-After" in answer.headers, (answer.status_code, answer.text)
                self.refused.append((answer.status_code, now - begun))
                self.over.wait(PAUSE_S)
