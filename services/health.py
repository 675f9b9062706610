"""Tell whether a service of this machine is well: `python -m services.health URL`.

For health checks in containers, which have no curl. A `/metrics` address is well when the bus
answers that service and it does not refuse the event log; any other one when its answer is 200.
"""

import sys
import urllib.error
import urllib.request


PATIENCE_S = 4.0


def well(url: str) -> bool:
    """Return whether what answers at an address is well."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - our own
            text = answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return False
    if not url.endswith("/metrics"):
        return True
    return _well(text.splitlines())


def _well(metrics: list[str]) -> bool:
    bus = [line for line in metrics if line.startswith("clawdbot_bus_connected{")]
    refused = 'clawdbot_history_regressed{scope="log"} 1.0' in metrics
    return bool(bus) and all(line.endswith(" 1.0") for line in bus) and not refused


if __name__ == "__main__":
    sys.exit(0 if well(sys.argv[1]) else 1)
