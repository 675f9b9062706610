"""The two kinds of pydantic model: what services send each other, and what users send us."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler
from pydantic.functional_validators import WrapValidator
from pydantic_core import PydanticCustomError


class Message(BaseModel):
    """Service to service: unknown fields are ignored, so neighbours may be one version apart."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class UserInput(BaseModel):
    """What a user sends: an unknown field is an error that names it."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True
    )


def expected(text: str) -> WrapValidator:
    """Say one thing when none of a union's branches fits, instead of one thing for each branch."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("unexpected", "expected {what}", {"what": text}) from error

    return WrapValidator(check)
