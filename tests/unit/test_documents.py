"""The documentation says what the code does: its tables are held against it."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from clawdbot.cli.output import ExitCode
from events.catalog import EVENT_TYPES
from events.streams import StreamLimits, stream_configs
from schemas.catalogue import load
from schemas.messages import Header
from schemas.signatures import CONTENTS, SIGNATURES
from services import errors
from services.gateway.api import openapi_document
from tests.support import documents
from tests.support.code import PACKAGES, ROOT, imports, module_of, parse, sources


DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
LIMIT = re.compile(r"[A-Z][A-Z_]*_MAX(_S)?")


def limits() -> dict[str, object]:
    """Return every constant of the product that bounds something, by its dotted name."""
    found: dict[str, object] = {}
    for path in sources(*PACKAGES):
        for line in parse(path).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                name = line.targets[0].id
                if LIMIT.fullmatch(name):
                    module = module_of(path)
                    found[f"{module}.{name}"] = getattr(importlib.import_module(module), name)
    return found


def test_every_limit_is_documented_with_its_value() -> None:
    """Each constant called ..._MAX stands in docs/configuration.md."""
    rows = documents.table("docs/configuration.md", "Fixed limits")
    said = {row["constant"]: row["value"] for row in rows}
    known = limits()
    assert known.keys() == said.keys()
    assert known == {name: documents.value(said[name], known[name]) for name in known}


def test_the_table_of_metrics_is_the_registry() -> None:
    """Name, type and labels of every metric that a service keeps."""
    for path in sources("services"):
        if any(name.startswith("prometheus_client") for name in imports(parse(path))):
            importlib.import_module(module_of(path))
    known = {
        (next(iter(item.describe())).name, item._type, ", ".join(item._labelnames))
        for item in REGISTRY._collector_to_names
        if isinstance(item, MetricWrapperBase)
    }
    rows = documents.table("docs/operations.md", "Metrics")
    said = {(row["metric"].removesuffix("_total"), row["type"], row["labels"]) for row in rows}
    assert known == said


def test_the_table_of_errors_is_the_gateways() -> None:
    """Code by code, and the statuses that are narrower than their code."""
    rows = documents.table("docs/http-api.md", "Errors")
    said = {(row["code"], row["status"]) for row in rows}
    known = {(code, str(status)) for code, status in errors.STATUS.items()}
    known |= {(kind.code, str(status)) for kind, status in errors._KINDS.items()}
    assert known == said


def test_the_table_of_streams_is_what_is_made() -> None:
    """Subjects, storage, retention, what happens when full, and the most bytes of each stream."""
    rows = documents.table("docs/architecture.md", "Streams")
    said = {row["stream"]: row for row in rows if not row["stream"].islower()}
    for config in stream_configs(StreamLimits()):
        row = said.pop(str(config.name))
        kinds = {subject.split(".")[3] for subject in config.subjects or ()}
        assert kinds == set(re.findall(r"[a-z]+", row["holds"])), config.name
        assert config.storage is not None
        assert config.storage.value == row["storage"], config.name
        kept = "work queue" if config.retention and config.retention.value == "workqueue" else "log"
        assert kept == row["kept as"], config.name
        assert config.discard is not None
        assert config.discard.value == row["when full"].split()[0], config.name
        assert config.max_bytes == documents.value(row["bytes"], 0), config.name
    assert {} == said


def test_every_kind_of_subject_is_in_the_architecture() -> None:
    """Each function of events.subjects that builds a subject has a row."""
    source = (ROOT / "events" / "subjects.py").read_text(encoding="utf-8")
    known = set(re.findall(r"\{ROOT\}\.\{[a-z.]+\}\.([a-z]+)", source))
    rows = documents.table("docs/architecture.md", "Subjects")
    assert known == {row["subject"].split(".")[0] for row in rows}


def test_every_event_is_in_the_architecture() -> None:
    """Each short name has a row."""
    rows = documents.table("docs/architecture.md", "Events")
    assert EVENT_TYPES.keys() == {row["event"] for row in rows}


def test_every_address_is_documented() -> None:
    """Method and path of the OpenAPI document have a row in docs/http-api.md."""
    known = {
        f"{method.upper()} {path}"
        for path, operations in openapi_document()["paths"].items()
        for method in operations
    }
    rows = documents.table("docs/http-api.md", "Addresses")
    assert known == {row["request"].split("?")[0] for row in rows}


def test_every_header_is_documented() -> None:
    """What messages carry beside their bodies stands in docs/nats-api.md."""
    known = {value for name, value in vars(Header).items() if name.isupper()}
    rows = documents.table("docs/nats-api.md", "Headers")
    assert known == {row["header"] for row in rows}


def test_every_model_is_documented() -> None:
    """The catalogue and the first table of docs/models.md name the same models."""
    cells = [row["model"] for row in documents.table("docs/models.md", "What there is")]
    named = {name.strip("` ") for cell in cells for name in cell.split(",")}
    assert load().models.keys() == named


def test_every_exit_status_is_documented() -> None:
    """Number by number."""
    rows = documents.table("docs/operations.md", "Exit status")
    assert {str(int(code)) for code in ExitCode} == {row["status"] for row in rows}


def slug(heading: str) -> str:
    """Return the anchor that Markdown viewers make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file, and its anchor a heading, of this repository."""
    broken = []
    for target, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        if not path.exists():
            broken.append(target)
        elif anchor:
            text = path.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            if anchor not in {slug(heading) for heading in headings}:
                broken.append(f"{target}#{anchor}")
    assert [] == broken


def test_every_signature_and_content_is_documented() -> None:
    """The library and its tables in docs/models.md name the same."""
    rows = documents.table("docs/models.md", "Signatures")
    assert list(SIGNATURES) == [row["signature"] for row in rows if "signature" in row]
    assert list(CONTENTS) == [row["content"] for row in rows if "content" in row]
