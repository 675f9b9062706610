"""Run a worker: `CLAWDBOT_MODALITY=audio python -m services.workers`."""

from services.process import main
from services.workers.app import build
from services.workers.settings import WorkerSettings


main(WorkerSettings, build)
