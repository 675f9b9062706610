"""What a client may change of a model's configuration when it loads it.

A configuration that is overridden is another version: the same files under another spec, so that
whoever named the version before still has it, and a rollback brings it back. What a client sends
may be all that `config` says, with some of it changed.

Source: Triton's repository extension, the parameter `config` of load.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import ValidationError

from schemas.catalogue import ModelSpec
from schemas.errors import InvalidArgument
from schemas.repository import ModelControl, VersionPolicy
from schemas.workflow import invalid
from services.gateway.inference.config import model_config


FIELD = "parameters.config"
BATCHING, DELAY = "dynamic_batching", "max_queue_delay_microseconds"
CHANGED = ("max_batch_size", f"{BATCHING}.{DELAY}", "response_cache", "version_policy")


def read(text: object) -> dict[str, Any]:
    """Return a configuration as a client sends it.

    Raises:
        InvalidArgument: It is no JSON object.
    """
    try:
        document = orjson.loads(text if isinstance(text, str) else b"")
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("send a JSON object, as a text", field=FIELD) from error
    if not isinstance(document, dict):
        raise InvalidArgument("send a JSON object, as a text", field=FIELD)
    return document


def overridden(name: str, spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """Return a spec with what a configuration changes of it.

    Args:
        name: Of the model.
        spec: As it is.
        config: What the client wants; what it leaves out stays.

    Raises:
        InvalidArgument: It changes what belongs to the model's files; names the field.
    """
    update: dict[str, Any] = {}
    if "max_batch_size" in config:
        update["max_batch_size"] = config["max_batch_size"]
    if BATCHING in config:
        update["max_queue_delay_us"] = _of(config, BATCHING, DELAY, default=0)
    if "response_cache" in config:
        update["cache_responses"] = _of(config, "response_cache", "enable", default=False)
    try:
        changed = ModelSpec.model_validate({**spec.model_dump(), **update})
    except ValidationError as error:
        raise InvalidArgument(invalid(error).message, field=FIELD) from error
    before, after = (dict(_items(model_config(name, item))) for item in (spec, changed))
    for key, value in _items(config):
        if key not in CHANGED and value not in (before.get(key), after.get(key)):
            raise InvalidArgument(
                f"'{key[:64]}' cannot be changed here; a configuration may change "
                f"{', '.join(CHANGED)}: push another version for the rest",
                field=f"{FIELD}.{key[:64]}",
            )
    return changed


def _items(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a configuration; those of batching one by one, as any may be left out."""
    for key, value in config.items():
        if key == BATCHING:
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def policy(name: str, spec: ModelSpec, config: Mapping[str, Any]) -> ModelControl | None:
    """Return the order that a configuration's version policy is; None without another one.

    Raises:
        InvalidArgument: It is none of `latest`, `all` and `specific`.
    """
    said = config.get("version_policy")
    if said is None or said == model_config(name, spec).get("version_policy"):
        return None
    if not isinstance(said, dict):
        raise InvalidArgument("send an object", field=f"{FIELD}.version_policy")
    [kind, *more] = said or [""]
    keep: dict[str, Any] = {"keep": kind}
    if kind == "latest":
        keep["count"] = _of(said, "latest", "num_versions", default=1)
    elif kind == "specific":
        keep["versions"] = _of(said, "specific", "versions", default=())
    try:
        if more:
            raise InvalidArgument("one policy only", field=f"{FIELD}.version_policy")
        return ModelControl(action="policy", policy=VersionPolicy.model_validate(keep))
    except ValidationError as error:
        raise InvalidArgument(
            'send {"latest": {"num_versions": 2}}, {"all": {}} or {"specific": {"versions": [3]}}',
            field=f"{FIELD}.version_policy",
        ) from error


def _of(config: Mapping[str, Any], key: str, inner: str, *, default: Any) -> Any:
    """Return a field of an object in a configuration."""
    found = config[key]
    if not isinstance(found, dict):
        raise InvalidArgument("send an object", field=f"{FIELD}.{key}")
    return found.get(inner, default)
