"""Run the gateway: `python -m services.gateway`."""

from services.gateway.app import build
from services.gateway.settings import GatewaySettings
from services.runtime import main


main(GatewaySettings, build)
