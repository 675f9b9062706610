"""The catalogue: which models and templates exist, what they take and give, and their sources."""

from collections.abc import Mapping
from functools import cache, cached_property
from importlib import resources
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from schemas.complaints import first_complaint
from schemas.errors import InvalidArgument, NotFound
from schemas.ids import ModelName, Sha256, TemplateId
from schemas.message import UserInput
from schemas.parity import Parity
from schemas.sequences import Controls, StateSpec, check_controls, check_states
from schemas.serving import WARM_UPS_MAX, Buckets, Limits, WarmUp, is_none
from schemas.signatures import CONTENTS, SIGNATURES, Content, check_content, contents_of
from schemas.tensors import BYTES, DATATYPES, RANK_MAX


Modality = Literal["text", "audio", "vision"]
ValueKind = Literal["text", "audio", "image", "json", "tensor"]

TEMPLATE_CHARS_MAX = 16 * 1024
NAME_CHARS_MAX = 128
LABELS_MAX = 65_536
DELAY_US_MAX = 10_000_000


class Vocabulary(UserInput):
    """The tokens of a model, for the adapter that makes them of a text."""

    path: Annotated[str, Field(max_length=NAME_CHARS_MAX)]
    """Beside the model's source: one token a line, or a `tokenizer.json` if it ends in .json."""
    sha256: Sha256
    """Of the file: another one is not read."""
    lower_case: bool = True
    """Whether the model was trained on text without capitals and accents; a `tokenizer.json` says
    it itself."""
    tokens_max: int = Field(default=512, ge=2, le=8192)
    """As many as the model has positions for; the rest is cut."""

    @property
    def is_whole(self) -> bool:
        """Whether the file says all that a tokenizer does."""
        return self.path.lower().endswith(".json")


class Port(UserInput):
    """One named input or output of a model."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    kind: ValueKind
    """What flows: `text` is a string, `audio` and `image` are bytes, `json` is anything JSON."""
    tensor: str = Field(default="", max_length=NAME_CHARS_MAX)
    """What the model's file and the Open Inference Protocol call it, where that is another name."""
    datatype: Annotated[str, Field(json_schema_extra={"enum": list(DATATYPES)})] = "BYTES"
    """Open Inference datatype, for `tensor`."""
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = Field(
        default=(1,), strict=False, max_length=RANK_MAX
    )
    """Open Inference shape; -1 is a dynamic dimension."""
    content: Annotated[str, Field(json_schema_extra={"enum": ["", *CONTENTS]})] = ""
    """What the numbers of a tensor mean, of `schemas.signatures`; a signature sets it."""
    vocabulary: Vocabulary | None = None
    """Of a tensor of tokens; the model's `vocabulary` sets it."""
    required: bool = True
    """A run is refused when nothing can feed a required input."""
    labels: tuple[Annotated[str, Field(max_length=NAME_CHARS_MAX)], ...] = Field(
        default=(), strict=False, max_length=LABELS_MAX
    )
    """Names of an output's elements, by index; a classification says them."""
    description: str = ""

    @property
    def made_of(self) -> Content | None:
        """What an adapter makes of a file or a text for this input; None where none does."""
        content = CONTENTS.get(self.content)
        if content is None or not content.adapter:
            return None
        return None if content.needs_vocabulary and self.vocabulary is None else content

    @field_validator("datatype")
    @classmethod
    def _is_known(cls, datatype: str) -> str:
        if datatype not in DATATYPES:
            raise ValueError(f"unknown datatype; use one of {', '.join(DATATYPES)}")
        return datatype

    @model_validator(mode="after")
    def _content_fits(self) -> "Port":
        if self.content:
            check_content(self, self.content)
        return self

    @property
    def tensor_name(self) -> str:
        """What the Open Inference Protocol calls it."""
        return self.tensor or self.name


class ModelSpec(UserInput):
    """One model: its engine, its signature, its source, and who may stand in for it."""

    modality: Modality
    engine: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the engine that runs it."""
    inputs: tuple[Port, ...] = Field(strict=False)
    outputs: tuple[Port, ...] = Field(strict=False)
    source: str | None = None
    """Where the weights are: a path below the models directory, or None when a library has them."""
    signature: Annotated[str, Field(json_schema_extra={"enum": ["", *SIGNATURES]})] = ""
    """A signature of the library that its inputs and outputs keep."""
    vocabulary: Vocabulary | None = None
    """The model's tokens: a text can then be bound to its inputs of tokens."""
    version: str = "1"
    fallback: ModelName | None = None
    """A model of the same signature that may serve in development when the weights are absent."""
    get: str = ""
    """How to get the weights, in one sentence a newcomer can follow."""
    description: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    """Defaults for the engine; a node's own params win."""
    accepts: tuple[str, ...] | None = Field(default=None, strict=False)
    """Params that a node may give; None lets any pass."""
    timeout_s: float = Field(default=30.0, gt=0, le=3600, strict=False)
    preload: bool = False
    """Load it when a worker starts: its card then says whether it really runs, and the first
    request does not wait."""
    state: tuple[StateSpec, ...] = Field(default=(), strict=False)
    """Inputs and outputs that are a sequence's state; clients of the Open Inference Protocol see
    neither."""
    controls: Controls | None = Field(default=None, exclude_if=is_none)
    """Inputs that tell the model of its sequences; clients do not see them either."""
    streams: bool = False
    """Whether its engine can give an answer in parts."""
    max_batch_size: int = Field(default=0, ge=0, le=65536)
    """Rows that one call of the engine may have: then the first dimension of every input and output
    is -1, and requests that wait are computed together. 0: one request, one call."""

    max_queue_delay_us: int = Field(default=0, ge=0, le=DELAY_US_MAX, exclude_if=not_)
    """How long a free engine may wait for more rows, microseconds, where measured times say that
    more of them are cheaper and lately more were there. 0: never."""

    warm_up: tuple[WarmUp, ...] | None = Field(
        default=None, strict=False, max_length=WARM_UPS_MAX, exclude_if=is_none
    )
    """Computed when it is loaded, before it serves; it must work. By default a row of zeros, for
    models whose inputs are tensors; `[]` for none."""

    cache_responses: bool = Field(default=False, exclude_if=not_)
    """Whether a worker may answer with what it computed for the same inputs and parameters."""
    buckets: Buckets | None = Field(default=None, exclude_if=is_none)
    """How requests of different lengths are computed together."""
    isolation: Literal["auto", "none", "process"] = Field(default="auto", exclude_if="auto".__eq__)
    """Whether it runs in a process of its own, whose crash, hang or memory touches no other model:
    `auto` does where a limit needs it, or its runtime kept its memory when it was unloaded."""
    limits: Limits | None = Field(default=None, exclude_if=is_none)
    """What it may take of its worker."""
    parity: Parity | None = None
    """How far it is from the model it was converted or quantised from."""

    @model_validator(mode="after")
    def _keeps_its_signature(self) -> "ModelSpec":
        if not self.signature:
            return self
        taken, given = contents_of(self.signature, self.inputs, self.outputs)
        for side, contents in (("inputs", taken), ("outputs", given)):
            ports = tuple(
                _with_content(port, contents.get(port.name, ""), self.signature)
                for port in getattr(self, side)
            )
            object.__setattr__(self, side, ports)  # it is being made: nobody has it yet
        return self

    @model_validator(mode="after")
    def _has_one_vocabulary(self) -> "ModelSpec":
        if self.vocabulary is None:
            return self
        tokens = [port for port in self.inputs if _is_of_tokens(port)]
        if not tokens:
            raise ValueError("vocabulary: no input holds tokens, by a signature or its content")
        ports = tuple(
            port.model_copy(update={"vocabulary": self.vocabulary}) if port in tokens else port
            for port in self.inputs
        )
        object.__setattr__(self, "inputs", ports)
        return self

    @model_validator(mode="after")
    def _rows_come_first(self) -> "ModelSpec":
        for port in (*self.inputs, *self.outputs) if self.max_batch_size else ():
            if port.kind != "tensor" or port.shape[:1] != (-1,):
                raise ValueError(
                    f"'{port.name}' cannot be batched: with max_batch_size each input and output "
                    "is a tensor whose first dimension is -1"
                )
        if self.max_queue_delay_us and not self.max_batch_size:
            raise ValueError("max_queue_delay_us: only for a model with max_batch_size")
        return self

    @model_validator(mode="after")
    def _buckets_fit(self) -> "ModelSpec":
        if self.buckets is None:
            return self
        inputs = {port.name: port for port in self.inputs}
        outputs = {port.name: port for port in self.outputs}
        for name, padded in self.buckets.padded.items():
            _check_bucketed("input", inputs.get(name), name, padded.axis, self.max_batch_size)
            if not inputs[name].required and name != self.buckets.mask:
                raise ValueError(f"buckets: input '{name}' must be required")
        for name, axis in self.buckets.outputs.items():
            _check_bucketed("output", outputs.get(name), name, axis, self.max_batch_size)
        return self

    @model_validator(mode="after")
    def _states_fit(self) -> "ModelSpec":
        inputs = {port.name: port for port in self.inputs}
        check_states(self.state, inputs, {port.name: port for port in self.outputs})
        if self.controls is not None:
            check_controls(self.controls, self.state, inputs)
        return self

    @cached_property
    def asked(self) -> tuple[Port, ...]:
        """The inputs that a client sends: all but a sequence's state, and what is said of it."""
        own = {state.input for state in self.state}
        own |= set() if self.controls is None else set(self.controls.inputs)
        return tuple(port for port in self.inputs if port.name not in own)

    @cached_property
    def made(self) -> tuple[Port, ...]:
        """The inputs that an adapter makes of a file or a text."""
        return tuple(port for port in self.inputs if port.made_of is not None)

    @cached_property
    def given(self) -> tuple[Port, ...]:
        """The outputs that a client gets: all but a sequence's state."""
        states = {state.output for state in self.state}
        return tuple(port for port in self.outputs if port.name not in states)


def _check_bucketed(side: str, port: Port | None, name: str, axis: int, rows: int) -> None:
    """Refuse to pad or cut what has no dimension that varies there."""
    if port is None:
        raise ValueError(f"buckets: the model has no {side} '{name}'")
    if port.kind != "tensor" or port.datatype in {BYTES, "BF16"}:
        raise ValueError(f"buckets: {side} '{name}' must be a tensor of numbers")
    if port.shape[axis : axis + 1] != (-1,) or (rows and axis == 0):
        raise ValueError(
            f"buckets: dimension {axis} of {side} '{name}' must be -1, and not that of the rows"
        )


def _is_of_tokens(port: Port) -> bool:
    content = CONTENTS.get(port.content)
    return content is not None and content.needs_vocabulary


def _with_content(port: Port, content: str, signature: str) -> Port:
    if port.content and content and port.content != content:
        raise ValueError(f"'{port.name}' of {signature} holds {content}, not {port.content}")
    return port.model_copy(update={"content": content}) if content else port


class TemplateSpec(UserInput):
    """One logic-less template."""

    text: Annotated[str, Field(max_length=TEMPLATE_CHARS_MAX)]
    description: str = ""


class Catalogue(UserInput):
    """Everything a workflow may name."""

    models: dict[ModelName, ModelSpec]
    templates: dict[TemplateId, TemplateSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fallbacks_fit(self) -> "Catalogue":
        _check_fallbacks(self.models)
        return self

    def model(self, name: str, *, field: str = "model") -> ModelSpec:
        """Return the spec of `name`.

        Raises:
            NotFound: No such model.
        """
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(sorted(name for name in self.models if "@" not in name))
            raise NotFound(f"no model named '{name}'; known: {known}", field=field) from None

    def having(self, models: Mapping[str, ModelSpec]) -> "Catalogue":
        """Return this catalogue with other models.

        Raises:
            InvalidArgument: A fallback is missing, or has another signature.
        """
        try:
            _check_fallbacks(models)
        except ValueError as error:
            raise InvalidArgument(str(error), field="models") from error
        return self.model_copy(update={"models": dict(models)})

    def params(self, name: str, given: Mapping[str, Any], *, field: str) -> dict[str, Any]:
        """Return the parameters of `name`'s engine: the catalogue's, overridden by a node's.

        Raises:
            InvalidArgument: Neither the model nor who may stand in for it knows one.
        """
        spec = self.models[name]
        if not given:
            return dict(spec.params)
        stand_in = None if spec.fallback is None else self.models[spec.fallback]
        accepted = [item.accepts for item in (spec, stand_in) if item is not None]
        known = sorted({param for params in accepted for param in params or ()})
        unknown = sorted(set(given) - set(known))
        if unknown and None not in accepted:
            raise InvalidArgument(
                f"'{name}' has no parameter '{unknown[0]}'; known: {', '.join(known) or 'none'}",
                field=f"{field}.{unknown[0]}",
            )
        return {**spec.params, **given}


def _check_fallbacks(models: Mapping[str, ModelSpec]) -> None:
    for name, spec in models.items():
        if spec.fallback is None:
            continue
        stand_in = models.get(spec.fallback)
        if stand_in is None:
            raise ValueError(f"models.{name}.fallback: no model named {spec.fallback}")
        if signature(stand_in) != signature(spec):
            raise ValueError(f"models.{name}.fallback: {spec.fallback} has another signature")


def _made(port: Port) -> tuple[object, ...]:
    """Return what decides how an input is made of a file or a text."""
    return (port.content, port.shape, port.vocabulary) if port.content else ()


def signature(spec: ModelSpec) -> tuple[object, ...]:
    """Return what two models must share so that one may serve for the other."""
    ports = [(port.name, port.kind, port.required, *_made(port)) for port in spec.inputs]
    return (spec.modality, tuple(ports), tuple((port.name, port.kind) for port in spec.outputs))


def parse(text: str) -> Catalogue:
    """Read a catalogue from YAML.

    Raises:
        InvalidArgument: No YAML, or it breaks the schema; names the field.
    """
    try:
        document = yaml.safe_load(text)
        return Catalogue.model_validate(document)
    except yaml.YAMLError as error:
        raise InvalidArgument("the catalogue is not YAML", field="catalogue") from error
    except ValidationError as error:
        loc, message = first_complaint(error)
        where = ".".join(str(part) for part in loc)
        raise InvalidArgument(message, field=where or "catalogue") from error


@cache
def load(path: Path | None = None) -> Catalogue:
    """Load the catalogue at `path`, or the one that ships with clawdbot.

    Raises:
        InvalidArgument: It cannot be read, or breaks its schema.
    """
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"cannot read {path.name}: {error}", field="catalogue") from error
        return parse(text)
    return parse(resources.files("schemas").joinpath("catalogue.yaml").read_text(encoding="utf-8"))
