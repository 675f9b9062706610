"""What a submitter sends to start a run, and how its inputs are checked."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
import ormsgpack
from pydantic import ValidationError

from schemas.errors import InvalidArgument
from schemas.messages import Header, unpack_document
from schemas.plan import Plan
from schemas.values import Binary, Wire, from_json, to_wire


MSGPACK, JSON = "application/msgpack", "application/json"


def inputs_digest(workflow: str, inputs: Wire) -> str:
    """SHA-256 over workflow and inputs: the same submission has the same digest."""
    packed = ormsgpack.packb([workflow, inputs], option=ormsgpack.OPT_SORT_KEYS)
    return hashlib.sha256(packed).hexdigest()


def pack_inputs(inputs: Wire) -> bytes:
    """Return the MessagePack body of a submission."""
    return ormsgpack.packb({"inputs": inputs})


def parse_submission(body: bytes, headers: Mapping[str, str], plan: Plan) -> Wire:
    """Read the inputs out of a submission.

    JSON and MessagePack bodies hold `{"inputs": {...}}`. Any other content type makes the body
    itself the one input: the one named by `Clawdbot-Input`, or the only required one.

    Raises:
        InvalidArgument: The body cannot be read, or an input is missing or unknown.
    """
    inputs = read_inputs(body, headers, plan.run_inputs())
    check_inputs(inputs, plan)
    return inputs


def read_inputs(body: bytes, headers: Mapping[str, str], known: Mapping[str, bool]) -> Wire:
    """Read inputs as `parse_submission` does, without a look at their names.

    Args:
        body: JSON, MessagePack, or one raw input.
        headers: Tell which.
        known: The inputs there are, and whether each is required.

    Raises:
        InvalidArgument: The body cannot be read, or nothing tells which input it is.
    """
    content_type = _content_type(headers)
    if content_type == MSGPACK:
        return _inputs_of(unpack_document(body))
    if content_type == JSON:
        try:
            return inputs_of(orjson.loads(body or b"{}"))
        except orjson.JSONDecodeError as error:
            raise InvalidArgument(f"the body is not JSON: {error.msg}", field="body") from error
    return {_input_name(headers, known): _raw_value(content_type, body)}


def read_inference(
    body: bytes, headers: Mapping[str, str], known: Mapping[str, bool]
) -> tuple[Wire, dict[str, Any]]:
    """Read inputs as `read_inputs` does, and the engine's `params` that may stand beside them.

    Raises:
        InvalidArgument: As `read_inputs`.
    """
    if _content_type(headers) != MSGPACK:
        return read_inputs(body, headers, known), {}
    document = unpack_document(body)
    params = document.pop("params", {}) if isinstance(document, dict) else {}
    if not isinstance(params, dict):
        raise InvalidArgument("send an object", field="params")
    return _inputs_of(document), params


def _content_type(headers: Mapping[str, str]) -> str:
    return headers.get(Header.CONTENT_TYPE, JSON).partition(";")[0].strip().lower()


def check_inputs(inputs: Wire, plan: Plan) -> None:
    """Refuse inputs that the plan does not know, and their lack where it needs them.

    Raises:
        InvalidArgument: Names the input.
    """
    check_names(inputs, plan.run_inputs(), "workflow", takes_any=plan.takes_any)


def check_names(
    inputs: Wire, known: Mapping[str, bool], taker: str, *, takes_any: bool = False
) -> None:
    """Refuse unknown inputs, and the lack of required ones.

    Args:
        inputs: What came.
        known: The inputs there are, and whether each is required.
        taker: Who takes them, for the message.
        takes_any: Whether unknown ones are welcome.

    Raises:
        InvalidArgument: Names the input.
    """
    for name in inputs:
        if name not in known and not takes_any:
            wanted = ", ".join(sorted(known)) or "no inputs"
            raise InvalidArgument(
                f"the {taker} has no input '{name}'; it takes {wanted}", field=f"inputs.{name}"
            )
    for name, required in known.items():
        if required and name not in inputs:
            raise InvalidArgument(f"the {taker} needs the input '{name}'", field=f"inputs.{name}")


def inputs_of(document: Any) -> Wire:
    """Return the inputs of `{"inputs": {...}}` that came as JSON.

    Raises:
        InvalidArgument: Another shape, or a malformed value.
    """
    return from_json(_inputs_of(document))


def _inputs_of(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("inputs", {}), dict):
        raise InvalidArgument('send an object: {"inputs": {"<name>": <value>}}', field="inputs")
    unknown = sorted(str(key) for key in document if key != "inputs")
    if unknown:
        raise InvalidArgument(
            f"unknown field '{unknown[0]}'; inputs go under \"inputs\"", field=unknown[0]
        )
    inputs: dict[str, Any] = document.get("inputs", {})
    return inputs


def _input_name(headers: Mapping[str, str], known: Mapping[str, bool]) -> str:
    if Header.INPUT in headers:
        return headers[Header.INPUT]
    required = [name for name, needed in known.items() if needed]
    if len(required) != 1:
        there_are = f"there are: {', '.join(known)}" if known else "its templates name them"
        raise InvalidArgument(
            f"say in the header {Header.INPUT} which input the body is ({there_are}), "
            'or send JSON: {"inputs": {"<name>": <value>}}',
            field=Header.INPUT,
        )
    return required[0]


def _raw_value(content_type: str, body: bytes) -> Any:
    if content_type.startswith("text/"):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument("the body is not UTF-8", field="body") from error
    try:
        return to_wire(Binary(media_type=content_type, data=body))
    except ValidationError as error:
        raise InvalidArgument(
            "send a media type such as audio/wav", field=Header.CONTENT_TYPE
        ) from error
