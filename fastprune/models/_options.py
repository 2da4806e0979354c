"""A family's options, checked against its pydantic model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from fastprune.errors import ConfigError, nearest

__all__ = ["checked_options"]


def checked_options(
    network: str, model: type[BaseModel] | None, given: dict[str, Any]
) -> dict[str, Any]:
    """The options with their defaults filled in.

    Raises:
        ConfigError: every unknown name and bad value at once.
    """
    if model is None:
        if given:
            raise ConfigError([f"{network}: takes no options, got {name}" for name in given])
        return {}
    try:
        return model(**given).model_dump()
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                text = "unknown option" + nearest(name, model.model_fields)
            else:
                text = f"{problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}"
            problems.append(f"{network}: {name}: {text}")
        raise ConfigError(problems) from None
