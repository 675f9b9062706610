"""Run the orchestrator: `python -m services.orchestrator`."""

from services.orchestrator.app import build
from services.orchestrator.settings import OrchestratorSettings
from services.process import main


main(OrchestratorSettings, build)
