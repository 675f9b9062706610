"""`clawdbot doctor`: what could go wrong, found before it does.

`clawdbot doctor --accept-history` is how an operator says that the event log is right although it
lacks what was seen of it: the only thing here that changes anything (docs/history.md).
"""

import asyncio
import importlib.util
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import nats
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from pydantic import ValidationError

from clawdbot import embedded, ports
from clawdbot.client import Client, address
from clawdbot.mesh import METRICS_FILE, mesh_runs
from clawdbot.settings import FaceSettings, read
from events.marks import accept, contradiction, read_shared, refusal
from events.streams import BLOBS, StreamLimits, stream_configs
from schemas.api import ErrorBody
from schemas.catalogue import load as load_catalogue
from schemas.errors import BusUnavailable, ClawdbotError, StoreUnavailable


SERVER_MIN = (2, 12)
DISK_FREE_MIN = 4 * 1024**3
CLOCK_SKEW_MAX_S = 2.0
NATS_TIMEOUT_S = 2
FULL = 0.8
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    level: Level
    subject: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Return it as JSON types."""
        return asdict(self)


def examine(url: str | None, data_dir: Path | None = None) -> list[Finding]:
    """Look at everything; a mesh that does not run is looked at as far as that goes.

    Raises:
        FailedPrecondition: The environment holds a value that cannot be.
    """
    settings = _settings(data_dir)
    findings = [_packages(), _binary(settings), _disk(settings.data_dir)]
    ours, found = _gateway(address(url))
    if not any(finding.subject == "weights" for finding in found):
        found.append(_local_weights(settings))
    findings += found
    up = mesh_runs(settings.data_dir) or ours  # whoever keeps its data
    for host, port, option in (
        (settings.http_host, settings.http_port, "--port"),
        (embedded.HOST, settings.nats_port, "--nats-port"),
    ):
        findings.append(_port(host, port, option, up=up))
    findings += _services(settings.data_dir)
    findings += asyncio.run(_bus(settings))
    return findings


def _settings(data_dir: Path | None) -> FaceSettings:
    return read(**({} if data_dir is None else {"data_dir": data_dir}))


def _packages() -> Finding:
    wanted = ("onnxruntime", "pocketsphinx", "rapidocr", "espeakng_loader")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        get = "in the folder of clawdbot: pip install -e '.[models]'"
        text = f"{', '.join(missing)} missing; {get}"
        return Finding("warn", "model libraries", text)
    return Finding("ok", "model libraries", "installed")


def _binary(settings: FaceSettings) -> Finding:
    if settings.nats_url:
        return Finding("ok", "nats-server", "none of our own is needed; CLAWDBOT_NATS_URL is set")
    try:
        binary = embedded.server_binary()
    except ClawdbotError as error:
        return Finding("fail", "nats-server", error.message)
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - our server
    version = shown.stdout.strip().rpartition("v")[2]
    return _version("bundled nats-server", version)


def _version(subject: str, version: str) -> Finding:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < SERVER_MIN:
        need = ".".join(str(part) for part in SERVER_MIN)
        return Finding("fail", subject, f"version {version or 'unknown'}; {need} is needed")
    return Finding("ok", subject, f"version {version}")


def _disk(folder: Path) -> Finding:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / 1024**3:.1f} GiB free for {folder}"
    if free < DISK_FREE_MIN:
        return Finding("warn", "disk", f"{text}; the log refuses runs (507) when it is full")
    return Finding("ok", "disk", text)


def _gateway(url: str) -> tuple[bool, list[Finding]]:
    """Return whether a gateway of clawdbot answers, ready or not, and what it says."""
    try:
        began = _now()
        answer = httpx.get(f"{url}/readyz", timeout=5)
        ended = _now()
    except httpx.TransportError:
        lonely = f"nobody answers at {url}; start it: clawdbot up"
        return False, [Finding("warn", "gateway", lonely)]
    if not answer.is_success:
        try:
            why, ours = ErrorBody.model_validate_json(answer.content).error.message, True
        except ValidationError:
            why, ours = (
                f"no gateway of clawdbot answers there, but status {answer.status_code}",
                False,
            )
        return ours, [Finding("fail", "gateway", f"{url} is not ready: {why}")]
    findings = [Finding("ok", "gateway", f"ready at {url}")]
    if "date" in answer.headers:
        there = parsedate_to_datetime(answer.headers["date"]).timestamp()
        skew = max(0.0, began - there - 1.0, there - ended)  # the header has whole seconds
        level: Level = "warn" if skew > CLOCK_SKEW_MAX_S else "ok"
        findings.append(Finding(level, "clock", f"{skew:.1f} s apart from the gateway's"))
    try:
        with Client(url) as client:
            findings += [_weights(client)]
    except ClawdbotError as error:
        findings.append(Finding("fail", "models", error.message))
    return True, findings


def _now() -> float:
    return datetime.now(UTC).timestamp()  # noqa: TID251 - it is the clock that is examined


def _weights(client: Client) -> Finding:
    models = client.models()
    replaced = [
        f"{model.name} ({', '.join(model.served_by) or 'nothing'} serves)"
        for model in models
        if model.name not in model.served_by
    ]
    if replaced:
        return Finding(
            "warn",
            "weights",
            f"missing for {', '.join(replaced)}; `clawdbot models --json` says how",
        )
    return Finding("ok", "weights", f"all {len(models)} models are here")


def _local_weights(settings: FaceSettings) -> Finding:
    """Look for weights without a mesh that could tell: in the models directory of this machine."""
    folder = settings.models_dir
    absent = [
        name
        for name, spec in load_catalogue(settings.catalogue).models.items()
        if spec.source is not None and not (folder / spec.source).is_dir()
    ]
    if absent:
        text = f"none in {folder} for {', '.join(absent)}; once up, `clawdbot models` says how"
        return Finding("warn", "weights", text)
    return Finding("ok", "weights", f"{folder} has what the catalogue names")


def _port(host: str, port: int, option: str, *, up: bool) -> Finding:
    if not port:
        return Finding("ok", "port", f"any free one ({option})")
    reason = ports.why_not(host, port)
    if reason is None:
        return Finding("ok", "port", f"{port} is free ({option})")
    if up:
        return Finding("ok", "port", f"{port} is in use, and a mesh runs here ({option})")
    text = f"{port} is taken ({reason}); stop what listens there, or clawdbot up {option}"
    return Finding("fail", "port", text)


def _services(data_dir: Path) -> list[Finding]:
    """Ask every service that `clawdbot up` started here whether the bus answers it."""
    try:
        targets = json.loads((data_dir / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not mesh_runs(data_dir):
        return []
    return [
        _service(
            f"service {target['labels']['instance']}", f"http://{target['targets'][0]}/metrics"
        )
        for target in targets
    ]


def _service(name: str, url: str) -> Finding:
    try:
        text = httpx.get(url, timeout=5).text
    except httpx.TransportError:
        return Finding("fail", name, f"does not answer at {url}; its log is in DATA_DIR/logs")
    lines = [line for line in text.splitlines() if line.startswith("clawdbot_bus_connected{")]
    if lines and all(line.endswith(" 1.0") for line in lines):
        return Finding("ok", name, f"well; metrics at {url}")
    return Finding("fail", name, "runs, but the bus does not answer it")


def _nats_url(settings: FaceSettings) -> str:
    """Return where NATS is: as configured, else where `clawdbot up` says, else where it would."""
    running = embedded.any_reported_url(settings.data_dir / "nats")
    return settings.nats_url or running or f"nats://{embedded.HOST}:{settings.nats_port}"


def accept_history(data_dir: Path | None = None) -> Finding:
    """Have the orchestrators accept the event log as it stands now, whatever was seen of it before.

    Raises:
        BusUnavailable: NATS does not answer.
        StoreUnavailable: JetStream does not answer.
        DataLoss: There is no log.
    """
    return asyncio.run(_accept(_settings(data_dir)))


async def _accept(settings: FaceSettings) -> Finding:
    nc = await _connect(settings)
    if nc is None:
        raise BusUnavailable(f"nobody answers at {_nats_url(settings)}")
    try:
        refused = await refusal(nc)
        marks = await accept(nc, _now())
    finally:
        await nc.close()
    text = f"accepted as created at {marks.created}, up to commit {marks.sequence}"
    return Finding("ok", "history", f"{text}; it was refused: {refused}" if refused else text)


async def _history(nc: Nats) -> Finding:
    marks, _ = await read_shared(nc)
    if marks is None:
        return Finding("ok", "history", "nothing was seen of the event log yet")
    wrong = marks.refused or await contradiction(nc, marks)
    if wrong:
        text = f"{wrong}; docs/history.md says what to do"
        return Finding("fail", "history", text)
    return Finding("ok", "history", f"the event log holds what was seen of it, to {marks.sequence}")


async def _connect(settings: FaceSettings) -> Nats | None:
    try:
        async with asyncio.timeout(NATS_TIMEOUT_S):
            servers = [part.strip() for part in _nats_url(settings).split(",")]
            return await nats.connect(servers, allow_reconnect=False, error_cb=_quiet)
    except (NatsError, OSError, TimeoutError):
        return None


async def _bus(settings: FaceSettings) -> list[Finding]:
    url, nc = _nats_url(settings), await _connect(settings)
    if nc is None:
        return [Finding("warn", "NATS", f"nobody answers at {url}; start it: clawdbot up")]
    try:
        info: dict[str, Any] = nc._server_info  # noqa: SLF001 - nats-py shows the version alone
        findings = [_version(f"NATS at {url}", str(info.get("version", "")))]
        findings.append(_sync_policy(settings))
        findings += await _streams(nc)
        findings.append(await _history(nc))
    except (NatsError, TimeoutError, StoreUnavailable) as error:
        findings = [Finding("fail", "JetStream", f"does not answer: {error}")]
    finally:
        await nc.close()
    return findings


def _sync_policy(settings: FaceSettings) -> Finding:
    config = settings.data_dir / "nats" / "nats.conf"
    if settings.nats_url or not config.exists():
        text = "not ours to see; set `sync_interval: always` so that a power cut loses nothing"
        return Finding("warn", "sync policy", text)
    if "sync_interval: always" in config.read_text(encoding="utf-8"):
        return Finding("ok", "sync policy", "every write is on disk before it is acknowledged")
    return Finding("fail", "sync policy", f"{config} lacks `sync_interval: always`")


async def _streams(nc: Nats) -> list[Finding]:
    js = nc.jetstream(timeout=NATS_TIMEOUT_S)
    findings = []
    there = {info.config.name: info for info in await js.streams_info()}
    for name in [*(str(wanted.name) for wanted in stream_configs(StreamLimits())), f"OBJ_{BLOBS}"]:
        info = there.get(name)
        if info is None:
            findings.append(Finding("warn", f"stream {name}", "is missing; a service makes it"))
            continue
        limit = info.config.max_bytes or -1
        if limit < 0:
            findings.append(Finding("warn", f"stream {name}", "has no size limit"))
            continue
        used = info.state.bytes / limit
        level: Level = "warn" if used > FULL else "ok"
        text = f"{used:.0%} of {limit / 1024**2:.0f} MiB used, {info.state.messages} messages"
        findings.append(Finding(level, f"stream {name}", text))
    return findings


async def _quiet(_: Exception) -> None:
    """Connection errors are findings, not log lines."""
