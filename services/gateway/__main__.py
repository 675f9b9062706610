"""Run the gateway: `python -m services.gateway`."""

from services.gateway.app import build
from services.gateway.settings import GatewaySettings
from services.runtime import run
from services.settings import read


run(build(read(GatewaySettings)).run)
