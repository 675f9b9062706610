"""Clients that keep submitting runs over HTTP whatever happens, and want every one back."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from schemas.ids import new_id
from tests.support.wait import until_sync


CLIENTS = 8
WAIT_S = 5
"""How long a submission waits for the end of its run before the client looks now and then."""
POLL_S = 0.25
REQUEST_S = 15.0
ACCEPTED_S = 90.0
ENDED_S = 180.0
RETRY = {429, 503}


@dataclass
class Load:
    """Submissions of one workflow, each with its own text.

    Args:
        urls: Gateways; one that does not answer is followed by the next.
        workflow: Its name; it has an input `text`.
        inputs: The other inputs.
    """

    urls: Sequence[str]
    workflow: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    """The text of every run that was accepted, by the run's id."""

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Ask one gateway after the other until an answer is no wish to try again."""
        answers: list[httpx.Response] = []
        tries = iter(range(10_000))

        def answered() -> bool:
            url = self.urls[next(tries) % len(self.urls)]
            try:
                answer = httpx.request(method, url + path, timeout=REQUEST_S, **request)
            except httpx.TransportError:
                return False
            answers.append(answer)
            return answer.status_code not in RETRY

        until_sync(answered, timeout_s=ACCEPTED_S)
        return answers[-1]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Submit from several clients until the block is left."""
        over = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._submit_until, over) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                over.set()
        for client in clients:
            client.result()

    def goes_on(self, runs: int) -> None:
        """Wait until runs that are submitted from now on have completed."""
        known = set(self.accepted)

        def completed() -> bool:
            fresh = [run_id for run_id in list(self.accepted) if run_id not in known]
            return len(fresh) >= runs and all(self._ended(run_id) for run_id in fresh[:runs])

        until_sync(completed, timeout_s=ENDED_S)

    def collect(self) -> dict[str, Any]:
        """Wait for the end of every accepted run; return what each gave, by its text.

        Raises:
            AssertionError: One did not complete, or its history is not linear.
        """
        outputs = {}
        for run_id, text in self.accepted.items():
            until_sync(lambda run_id=run_id: self._ended(run_id), timeout_s=ENDED_S)  # type: ignore[misc]
            run = self.ask("GET", f"/v1/runs/{run_id}").json()
            assert run["status"] == "completed", run
            events = self.ask("GET", f"/v1/runs/{run_id}/events").json()["events"]
            assert violations(events, {node["id"] for node in run["nodes"]}) == []
            outputs[text] = run["outputs"]
        return outputs

    def _submit_until(self, over: threading.Event) -> None:
        """Submit one run after the other: how many are open never grows."""
        while not over.is_set():
            text = new_id()
            answer = self.ask(
                "POST",
                f"/v1/workflows/{self.workflow}/runs?wait={WAIT_S}",
                json={"inputs": {"text": text, **self.inputs}},
                headers={"Idempotency-Key": text},
            )
            assert answer.status_code in {200, 202}, answer.text
            run_id = answer.json()["run_id"]
            self.accepted[run_id] = text
            while not (over.is_set() or self._ended(run_id)):
                over.wait(POLL_S)

    def _ended(self, run_id: str) -> bool:
        answer = self.ask("GET", f"/v1/runs/{run_id}")
        if answer.status_code == 404:
            return False  # accepted by another gateway and not begun yet
        return answer.json()["status"] not in {"accepted", "running"}


def violations(events: Sequence[Mapping[str, Any]], nodes: set[str]) -> list[str]:
    """Return what is wrong with the events of a completed run as the API shows them."""
    found = []
    types = [event["type"] for event in events]
    if [event["id"] for event in events] != list(range(1, len(events) + 1)):
        found.append("events are missing or out of order")
    if types[0] != "RunStarted" or types.count("RunStarted") != 1:
        found.append("it does not begin once")
    if types[-1] != "RunCompleted" or types.count("RunCompleted") != 1:
        found.append("it does not end once")
    results = Counter(
        event["data"]["node_id"] for event in events if event["type"] == "NodeCompleted"
    )
    if results != Counter(nodes):
        found.append(f"results of nodes: {dict(results)}")
    return found
