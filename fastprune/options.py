"""What all models of options have in common. No torch."""

from __future__ import annotations

import typing
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

__all__ = ["Options", "expecting"]


class Options(BaseModel):
    """Frozen options: no unknown names, and no true or false where a number is wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, given: Any, info: ValidationInfo) -> Any:
        # Pydantic takes true for 1, and in YAML a slip of the hand makes true of a number.
        field = cls.model_fields[str(info.field_name)]
        wanted = _leaves(field.annotation)
        if bool not in wanted and not wanted.isdisjoint((int, float)) and _has_bool(given):
            raise ValueError(f"expected {_number(given, wanted)}; got {given!r}")
        return given


def expecting(what: str) -> WrapValidator:
    """For a union: one line that says what would be right, in place of one for each member."""

    def check(given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(given)
        except ValidationError:
            raise ValueError(f"expected {what}; got {given!r}") from None

    return WrapValidator(check)


def _number(given: Any, wanted: set[Any]) -> str:
    if not isinstance(given, bool):
        return "numbers"
    return "a number" if float in wanted else "a whole number"


def _leaves(annotation: Any) -> set[Any]:
    """The types that an annotation is composed of, the values of literals left out."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {type(value) for value in inner}
    if origin is Annotated:
        return _leaves(inner[0])
    if origin is None:
        return {annotation}
    return {leaf for part in inner for leaf in _leaves(part)}


def _has_bool(given: Any) -> bool:
    if isinstance(given, dict):
        return any(map(_has_bool, given.values()))
    if isinstance(given, (list, tuple)):
        return any(map(_has_bool, given))
    return isinstance(given, bool)
