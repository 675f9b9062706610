"""Run the gateway: `python -m services.gateway`."""

from services.gateway.app import build
from services.gateway.settings import GatewaySettings
from services.process import main


main(GatewaySettings, build)
