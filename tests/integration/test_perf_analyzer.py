"""Triton's perf_analyzer, unchanged: it reads statistics and configuration, and measures.

It is a program, not a package: on the PATH it is used. The wheel of tritonclient 2.41.1 brings one
(`data/bin/perf_analyzer`; it wants libb64.so.0d and libcudart.so.12, and no GPU).
"""

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.inference import Served
from tests.support.mesh import Service


PROGRAM = shutil.which("perf_analyzer")
pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="perf_analyzer is not on the PATH"),
]
QUICK = "--measurement-interval 700 --stability-percentage 999 --max-trials 5"
CASES = {
    "one by one": "-m doubling -i http --concurrency-range 1",
    "batches": "-m doubling -i grpc --concurrency-range 4 -b 4",
    "texts": "-m echo -i http --concurrency-range 2 --string-data hello",
    "asynchronous": "-m doubling -i grpc --async --concurrency-range 4",
    "at a rate": "-m doubling -i grpc --request-rate-range 50",
    "sequences": "-m adding -i http --concurrency-range 2 --sequence-length 5",
    "sequences in streams": "-m adding -i grpc --streaming --concurrency-range 2",
    "parts": "-m repeat -i grpc --streaming --concurrency-range 1 --string-data hello",
    "shared memory": "-m same-fp32 -i http --shape X:1,2 --shared-memory system",
    "shared memory over gRPC": "-m same-fp32 -i grpc --shape X:1,2 --shared-memory system",
}


@pytest.fixture(scope="module")
def gateway(served: Served) -> Iterator[Service]:
    """Return a gateway that takes shared memory under any key."""
    service = served.mesh.add(
        "gateway-any", "services.gateway", http_port="0", grpc_port="0", shared_memory="true"
    )
    service.start()
    service.wait_ready()
    yield service
    served.mesh.stop_one("gateway-any")


@pytest.mark.parametrize("case", CASES)
def test_it_measures(gateway: Service, case: str) -> None:
    """Without an error, and what it counted is what the server counted."""
    event = "grpc_listening" if "-i grpc" in CASES[case] else "listening"
    address = f"127.0.0.1:{gateway.fact(event, 'port')}"
    done = subprocess.run(  # noqa: S603 - Triton's own program
        [str(PROGRAM), *CASES[case].split(), "-u", address, *QUICK.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    counts = [int(number) for number in re.findall(r"equest count: (\d+)", text)]
    assert len(counts) == 2, text
    assert counts[0] > 10
    assert abs(counts[0] - counts[1]) <= 0.05 * counts[0] + 10
