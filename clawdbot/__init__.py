"""clawdbot: build workflows of models, run them durably, look at every step.

from clawdbot import Client, WorkflowBuilder

wf = WorkflowBuilder().add_node("asr", model="whisper-tiny").add_node("nlu", model="bert-base")
wf.connect("asr", "nlu").deploy(name="understand")
run = Client().run("understand", {"audio": Path("hello.wav")})
"""

from clawdbot.async_client import AsyncClient
from clawdbot.builder import WorkflowBuilder
from clawdbot.client import Client
from clawdbot.results import Run
from schemas.api import EventView, NodePart
from schemas.errors import ClawdbotError
from schemas.values import Binary, BlobRef, Tensor


__all__ = [
    "AsyncClient",
    "Binary",
    "BlobRef",
    "ClawdbotError",
    "Client",
    "EventView",
    "NodePart",
    "Run",
    "Tensor",
    "WorkflowBuilder",
]
