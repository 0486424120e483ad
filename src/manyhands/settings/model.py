"""The settings themselves: sections, keys, types, defaults and units.

A plain model without a source: it does not know where a value came from (see `sources`). Each section's
description is what `manyhands config show` and the reference page print.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def _none_word(value: object) -> object:
    """An environment variable cannot hold None; these words can."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none", "null") else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(_none_word)]
OptionalText = Annotated[str | None, BeforeValidator(_none_word)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Section):
    """How long to wait for whom."""

    timeout: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds a connected peer may be silent"
    )
    wait_timeout: OptionalSeconds = Field(
        default=None, description="seconds to wait for a first peer; none: for ever"
    )
    patience_hours: float = Field(
        default=24.0,
        ge=0,
        allow_inf_nan=False,
        description="hours a node retries when its coordinator has vanished",
    )


class MonitoringSettings(_Section):
    """What is shown and kept while a run goes on."""

    progress_bars: bool = Field(default=True, description="bars on a terminal; plain lines otherwise")
    log_level: LogLevel = Field(
        default="warning", description="how loud the command line is: debug, info, warning or error"
    )
    save_logs: bool = Field(default=False, description="the command line also writes its log to log_file")
    log_file: OptionalText = Field(default=None, description="where save_logs writes; none: manyhands.log")


class AdvancedSettings(_Section):
    """What few need to change."""

    plain_line_seconds: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds between progress lines without a terminal",
    )


class Settings(BaseModel):
    """Every setting; sections are `network`, `monitoring` and `advanced`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkSettings = NetworkSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    advanced: AdvancedSettings = AdvancedSettings()
    invite: SecretStr | None = Field(default=None, description="the line to join with; MANYHANDS_INVITE")
