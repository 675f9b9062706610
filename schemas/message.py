"""The two kinds of pydantic model: what services send each other, and what users send us."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Service to service: unknown fields are ignored, so neighbours may be one version apart."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class UserInput(BaseModel):
    """What a user sends: an unknown field is an error that names it."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True
    )
