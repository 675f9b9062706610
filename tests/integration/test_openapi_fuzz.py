"""Requests made up from the OpenAPI document: whatever comes, the gateway answers below 500."""

import contextlib
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from events.recording import MEDIA_TYPE
from tests.integration.conftest import Running


pytestmark = pytest.mark.nats
CASES_MIN = 300
PROFILE = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MODES = list(schemathesis.GenerationMode)
"""By the rules of the document, and against them."""
schemathesis.serializer.alias(MEDIA_TYPE, "application/octet-stream")


@pytest.mark.timeout(240)
def test_no_request_makes_the_gateway_fail(running: Running) -> None:
    """At least 300 cases over all operations, on things that exist and on things made up."""
    url = running.url()
    answered: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=30) as client:
        there = _things(client)
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for found in schema.get_all_operations():
            operation: Any = found.ok()  # type: ignore[union-attr]
            named = {name: there[name] for name in there if f"{{{name}}}" in operation.path}
            for mode in MODES:
                for path_parameters in [None, named] if named else [None]:
                    _fuzz(operation, mode, path_parameters, answered)
        assert client.get("/readyz").status_code == 200
    assert answered.total() >= CASES_MIN, answered
    assert max(answered) < 500, answered
    assert {200, 202, 400, 404} <= set(answered), answered


def _things(client: httpx.Client) -> dict[str, str]:
    """Make one of each kind, so that half of the cases reach beyond a 404."""
    echo = {"id": "a", "type": "model", "params": {"model": "echo"}}
    workflow = {"name": "fuzzed", "definition": {"nodes": [echo]}}
    assert client.post("/v1/workflows", json=workflow).is_success
    run = client.post("/v1/workflows/fuzzed/runs?wait=10", json={"inputs": {"text": "x"}}).json()
    blob = client.post("/v1/blobs", content=b"fuzzed").json()
    return {"name": "fuzzed", "run_id": run["run_id"], "sha256": blob["sha256"]}


def _fuzz(operation: Any, mode: Any, named: dict[str, str] | None, answered: Counter[int]) -> None:
    """Send what schemathesis makes up for one operation."""
    cases = operation.as_strategy(generation_mode=mode, path_parameters=named)

    @PROFILE
    @given(case=cases)
    def send(case: Any) -> None:
        answer = case.call(timeout=30)
        answered[answer.status_code] += 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)

    with contextlib.suppress(Unsatisfiable):  # an operation without anything to get wrong
        send()
