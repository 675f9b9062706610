"""Write the committed contracts: `python -m services.contracts [--check]`.

`schemas/generated/` then holds the JSON Schema of everything a user writes or reads, the OpenAPI
document of the gateway, and the AsyncAPI document of the bus, which FastStream generates from
`CHANNELS`. `--check` writes nothing and fails when a file is not what would be written.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faststream import FastStream
from faststream.nats import NatsBroker
from faststream.specification import AsyncAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from events.catalog import SHORT_NAMES
from events.models import WorkerCard
from events.subjects import pattern
from schemas import api
from schemas.catalogue import Catalogue
from schemas.messages import Control, Inference, Task, TaskResult
from schemas.workflow import Deployment
from services.gateway.api import openapi_document


GENERATED = Path(__file__).resolve().parents[1] / "schemas" / "generated"
VERSION = "1"


@dataclass(frozen=True)
class Channel:
    """A kind of subject: who says what to whom."""

    name: str
    subject: str
    payload: Any
    description: str


CHANNELS = (
    Channel(
        "submit",
        pattern("submit", "workflow"),
        api.RunRequest,
        "Any client -> orchestrator, JetStream (COMMANDS). The ack means: the run is stored. Its "
        "id is the header Clawdbot-Run-Id, or else COMMANDS-<sequence of the ack>. The content "
        "type is application/json, application/msgpack, or that of one raw input, which the "
        "header Clawdbot-Input names. Clawdbot-Version pins a version of the workflow. "
        "With Clawdbot-Fork-Of the body is a Fork: the run begins like that one, changed.",
    ),
    Channel(
        "control",
        pattern("control", "run_id"),
        Control,
        "Any client -> orchestrator, JetStream (COMMANDS). Cancels, pauses, resumes, signals a "
        "run; skips or retries one of its nodes. A signal without an id gets one from its "
        "sequence.",
    ),
    Channel(
        "call",
        pattern("call", "workflow"),
        api.RunRequest,
        "Request and reply, service clawdbot-gateway. As submit, but the answer is the run's "
        "outputs; an error carries the headers Nats-Service-Error and Nats-Service-Error-Code, "
        "504 with Clawdbot-Run-Id when the run goes on. Clawdbot-Timeout-S is how long to wait.",
    ),
    Channel(
        "topic",
        pattern("topic", "subject"),
        Any,
        "Any client, and `emit` nodes -> triggers, JetStream (TOPICS). The tenant's own messages, "
        "JSON; `subject` may have several tokens. A deployed workflow with a trigger on it starts.",
    ),
    Channel(
        "infer",
        pattern("infer", "modality", "model"),
        api.RunRequest,
        "Request and reply, services clawdbot-worker-<modality>. One inference that no log keeps; "
        "no responders or 503 when nobody has room. With Clawdbot-Stream: true the answer comes in "
        "parts, numbered by Clawdbot-Part; the last message has no number.",
    ),
    Channel(
        "infer-reply",
        pattern("infer", "modality", "model") + ".reply",
        Inference,
        "The answer to infer, on the requester's own inbox.",
    ),
    Channel(
        "withdraw",
        pattern("withdraw", "request_id"),
        bytes,
        "Any client -> every worker, core NATS. The infer with this Clawdbot-Request-Id is not "
        "waited for any more: it leaves the line, or is stopped.",
    ),
    Channel(
        "tally",
        pattern("tally", "modality", "worker"),
        dict[str, Any],
        "Worker -> gateways, core NATS, JSON. What it has computed, every few seconds and "
        "when it is stopped; the same stands in STATS of its service.",
    ),
    Channel(
        "warm",
        pattern("warm", "modality", "pool", "model"),
        bytes,
        "Orchestrator -> every worker of the pool, core NATS, empty. The model is wanted soon: "
        "who can run it and has room for it loads it.",
    ),
    Channel(
        "task",
        pattern("task", "modality", "pool", "lane", "model"),
        Task,
        "Orchestrator -> one worker of the pool, JetStream (TASKS), MessagePack.",
    ),
    Channel(
        "result",
        pattern("result", "part", "run_id"),
        TaskResult,
        "Worker -> orchestrator, JetStream (RESULTS), MessagePack.",
    ),
    Channel(
        "event",
        pattern("event", "part", "run_id"),
        bytes,
        "Orchestrator -> the log (EVENTS). A commit: one or more events, encrypted with the "
        "tenant's key; version, previous hash and status of the run are headers.",
    ),
    Channel(
        "live",
        pattern("live", "part", "run_id"),
        bytes,
        "The server republishes every commit here, with the same headers and its sequence; "
        "Clawdbot-Run-Status other than `running` says that the run is over.",
    ),
    Channel(
        "chunk",
        pattern("chunk", "run_id", "node"),
        api.NodePart,
        "Worker -> gateways, any client, core NATS, JSON. A part of what a node of a run gives, "
        "while it computes, of models that stream; the log has the whole in NodeCompleted. `node` "
        "is the node's path, encoded.",
    ),
    Channel(
        "dead",
        pattern("dead", "kind"),
        bytes,
        "What could not be handled (DEAD): the message as it came, its subject in "
        "Clawdbot-Subject, why in Clawdbot-Reason.",
    ),
)

DOCUMENTS: dict[str, type[BaseModel]] = {
    "workflow": Deployment,
    "catalogue": Catalogue,
    "worker-card": WorkerCard,
    "run": api.RunView,
    "error": api.ErrorBody,
}


def asyncapi_document() -> dict[str, Any]:
    """Return the AsyncAPI document of the bus."""
    broker = NatsBroker("nats://localhost:4222", logger=None)
    for channel in CHANNELS:
        broker.publisher(
            channel.subject,
            title=channel.name,
            description=channel.description,
            schema=channel.payload,
        )
    specification = AsyncAPI(
        title="clawdbot",
        version=VERSION,
        description="The messages of the mesh. Tenants are `default` until there are accounts.",
    )
    app = FastStream(broker, specification=specification)
    # FastStream keeps its publishers in a set: without an order of ours each machine has its own.
    unordered = json.loads(app.schema.to_specification().to_json())
    document: dict[str, Any] = json.loads(json.dumps(unordered, sort_keys=True))
    return document


def events_document() -> dict[str, Any]:
    """Return the JSON Schema of every event of a run's log, by short name."""
    kinds = sorted(SHORT_NAMES, key=lambda kind: SHORT_NAMES[kind])
    references, definitions = models_json_schema([(kind, "serialization") for kind in kinds])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Events of a run",
        "events": {SHORT_NAMES[kind]: references[kind, "serialization"] for kind in kinds},
        **definitions,
    }


def documents() -> Iterator[tuple[Path, str]]:
    """Return every generated file and what belongs into it."""
    contents = {f"{name}.schema": kind.model_json_schema() for name, kind in DOCUMENTS.items()}
    contents["events.schema"] = events_document()
    contents["asyncapi"] = asyncapi_document()
    contents["openapi"] = openapi_document()
    for name, content in contents.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        yield GENERATED / f"{name}.json", text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(prog="python -m services.contracts", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = []
    for path, text in documents():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(("stale: " if check else "written: ") + ", ".join(stale) + "\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
