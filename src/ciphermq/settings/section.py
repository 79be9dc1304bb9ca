"""What every section of the configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every section: a key that is not a member is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


def none_when_empty(value: object) -> object:
    """A validator for what may be absent: TOML has no null, so ``""`` says it."""
    return value or None
