"""The settings themselves: sections, keys, types, defaults and units.

A plain model without a source: it does not know where a value came from (see `sources`). Each section's
description is what `manyhands config show` and the reference page print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def _none_word(value: object) -> object:
    """An environment variable cannot hold None; these words can."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none", "null") else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _level(value: object) -> object:
    return {"warn": "warning", "critical": "error", "fatal": "error"}.get(str(_lower(value)), _lower(value))


def _precision(value: object) -> object:
    """Yes and no are words for it too: half precision, or none."""
    words = {"true": "bf16", "yes": "bf16", "on": "bf16", "1": "bf16"}
    words |= {"false": "fp32", "no": "fp32", "off": "fp32", "0": "fp32"}
    return words.get(str(value).strip().lower(), _lower(value))


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(_none_word)]
OptionalText = Annotated[str | None, BeforeValidator(_none_word)]
PositiveInt = Annotated[int, Field(ge=1)]
OptionalInt = Annotated[PositiveInt | None, BeforeValidator(_none_word)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(_none_word)]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_precision)]
Workers = Annotated[Literal["auto"] | Annotated[int, Field(ge=0)], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_level)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Section):
    """Where the other side is, and how long to wait for whom."""

    gpu_host: OptionalText = Field(
        default="localhost",
        description="where the trainer is, for scripts of split mode; none: loaders listen",
    )
    cpu_host: OptionalText = Field(
        default="localhost", description="where the loaders are, for scripts of split mode"
    )
    port: Port = Field(default=29500, description="the port of split mode; 0: a free one")
    timeout: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds a connected peer may be silent"
    )
    wait_timeout: OptionalSeconds = Field(
        default=None, description="seconds to wait for a first peer; none: for ever"
    )
    heartbeat: float = Field(
        default=10.0,
        ge=0.5,
        allow_inf_nan=False,
        description="seconds between signs of life on a quiet connection; at most a third of timeout is used",
    )
    retry_attempts: OptionalInt = Field(
        default=None,
        description="how often in a row a loader dials a trainer that is away; none: as long as patience_hours",
    )
    patience_hours: float = Field(
        default=24.0,
        ge=0,
        allow_inf_nan=False,
        description="hours a node retries when its coordinator has vanished",
    )


class TrainingSettings(_Section):
    """Split mode's defaults for a training job; an argument in code beats each."""

    batch_size: PositiveInt = Field(default=64, description="samples of a batch")
    num_workers: Workers = Field(
        default="auto", description="processes that make batches; 0: none; auto: one a core"
    )
    epochs: PositiveInt = Field(default=10, description="times over the dataset")
    learning_rate: float = Field(
        default=0.001, gt=0, allow_inf_nan=False, description="of the default optimizer"
    )


class DataSettings(_Section):
    """How batches travel in split mode."""

    transfer_dtype: OptionalText = Field(
        default=None, description="narrower floats on the wire: uint8, float16, bfloat16; none: as they are"
    )
    on_bad_sample: Annotated[Literal["stop", "quarantine"], BeforeValidator(_lower)] = Field(
        default="stop",
        description="a sample that raises ends the run, or is left out and named: stop, quarantine",
    )
    queue_size: OptionalInt = Field(
        default=None,
        description="batches in flight to a trainer, at most; none: as many as the byte window takes",
    )
    window_mb: float = Field(
        default=256.0, gt=0, allow_inf_nan=False, description="MiB of batches in flight to a trainer, at most"
    )
    flow_control: bool = Field(default=True, description="always on: false is ignored, and said so")


class GpuSettings(_Section):
    """What the trainer of split mode computes with."""

    device: str = Field(default="auto", description="auto, cuda, cuda:1, mps or cpu")
    mixed_precision: Precision = Field(
        default="fp32", description="fp32, bf16 or fp16; true is bf16, false is fp32"
    )
    compile_model: bool = Field(default=False, description="torch.compile the model")


class ModelSettings(_Section):
    """Where a pipeline's boss is."""

    host: OptionalText = Field(
        default=None, description="where a worker's boss is; none: the invite's address"
    )
    port: OptionalPort = Field(
        default=None, description="the port of a pipeline's boss; none: the invite's, else 1024"
    )


class MonitoringSettings(_Section):
    """What is shown and kept while a run goes on."""

    progress_bars: bool = Field(default=True, description="bars on a terminal; plain lines otherwise")
    log_level: LogLevel = Field(
        default="warning", description="how loud the command line is: debug, info, warning or error"
    )
    save_logs: bool = Field(default=False, description="also write the log to log_file")
    log_file: OptionalText = Field(default=None, description="where save_logs writes; none: manyhands.log")


class ColabSettings(_Section):
    """How a notebook in the cloud is reached."""

    ngrok_auth_token: SecretStr | None = Field(
        default=None, description="your ngrok token; never in a committed file"
    )
    ngrok_region: str = Field(default="us", description="us, eu, ap, au, sa, jp or in")
    ssh_host: OptionalText = Field(
        default=None, description="user@host of a machine of yours with sshd, for tunnels by ssh -R"
    )


class AdvancedSettings(_Section):
    """What few need to change."""

    idle_seconds: Seconds = Field(
        default=60.0,
        description="seconds other programs must have been quiet before `join --when-idle` goes on",
    )
    plain_line_seconds: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds between progress lines without a terminal",
    )
    shared_memory: bool = Field(
        default=True,
        description="processes of one user on one machine pass large messages through its memory",
    )


class Settings(BaseModel):
    """Every setting, in its sections."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    data: DataSettings = DataSettings()
    gpu: GpuSettings = GpuSettings()
    model: ModelSettings = ModelSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    colab: ColabSettings = ColabSettings()
    advanced: AdvancedSettings = AdvancedSettings()
    invite: SecretStr | None = Field(default=None, description="the line to join with; MANYHANDS_INVITE")


SHORT_VARIABLES: Mapping[str, str] = {"MODEL_HOST": "model.host", "MODEL_PORT": "model.port"}
"""Names without our prefix that always set something; the long name of the same key beats them."""

SPLIT_VARIABLES: Mapping[str, str] = {
    "GPU_HOST": "network.gpu_host",
    "CPU_HOST": "network.cpu_host",
    "TRAINING_PORT": "network.port",
    "BATCH_SIZE": "training.batch_size",
    "NUM_WORKERS": "training.num_workers",
    "EPOCHS": "training.epochs",
    "LEARNING_RATE": "training.learning_rate",
    "GPU_DEVICE": "gpu.device",
    "MIXED_PRECISION": "gpu.mixed_precision",
    "PROGRESS_BARS": "monitoring.progress_bars",
    "LOG_LEVEL": "monitoring.log_level",
    "NGROK_AUTH_TOKEN": "colab.ngrok_auth_token",
    "NGROK_REGION": "colab.ngrok_region",
}
"""Names without our prefix, which split mode alone listens to: other programs use such words too."""
