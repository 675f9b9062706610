"""Run a worker: `CLAWDBOT_MODALITY=audio python -m services.workers`."""

from services.runtime import run
from services.settings import read
from services.workers.app import build
from services.workers.settings import WorkerSettings


run(build(read(WorkerSettings)).run)
