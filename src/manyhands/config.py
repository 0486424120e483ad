"""Split mode's configuration as scripts read it: one object over the settings of this folder and this environment.

::

    config = get_config()
    config.get("training.batch_size"), config["network.port"], config.get_network_config()["gpu_host"]

Argument in code > environment > .env > config.yaml > default. Values have their types; what nobody set has its
default. Reading loads no torch.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from manyhands.settings import Settings, load
from manyhands.settings.defaults import value_of
from manyhands.settings.sources import known_keys, nearest


class Config:
    """The settings in force, by dotted key or by section; they are read once, and again by `reload_config`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """As typed values. Raises UsageError naming the source and the key of what cannot be."""
        if self._settings is None:
            self._settings = load(self._folder, split=True)
        return self._settings

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``"section.key"``; `default` where it is none, or there is no such key."""
        try:
            value = self[key]
        except KeyError:
            return default
        return default if value is None else value

    def __getitem__(self, key: str) -> Any:
        """The value of ``"section.key"``, or a section as a dict; KeyError with the nearest known key."""
        try:
            return _plain(value_of(self.settings, key))
        except KeyError:
            raise KeyError(f"there is no setting {key!r}{nearest(key, known_keys())}") from None

    def __contains__(self, key: object) -> bool:
        return key in known_keys()

    def get_network_config(self) -> dict[str, Any]:
        """``port``, ``gpu_host``, ``cpu_host``, timeouts, heartbeat and retries."""
        return dict(self["network"])

    def get_training_config(self) -> dict[str, Any]:
        """``batch_size``, ``num_workers``, ``epochs``, ``learning_rate``."""
        return dict(self["training"])

    def get_data_config(self) -> dict[str, Any]:
        """``transfer_dtype``, ``on_bad_sample``, and the limits of what is in flight."""
        return dict(self["data"])

    def get_gpu_config(self) -> dict[str, Any]:
        """``device``, ``mixed_precision``, ``compile_model``."""
        return dict(self["gpu"])

    def get_monitoring_config(self) -> dict[str, Any]:
        """``progress_bars``, ``log_level``, ``save_logs``, ``log_file``."""
        return dict(self["monitoring"])

    def get_colab_config(self) -> dict[str, Any]:
        """``ngrok_auth_token``, ``ngrok_region``, ``ssh_host``."""
        return dict(self["colab"])

    def reload_config(self) -> Config:
        """Read files and environment again; this object, with what they say now."""
        self._settings = load(self._folder, split=True)
        return self


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in value}
    return value.get_secret_value() if isinstance(value, SecretStr) else value


@lru_cache(maxsize=1)
def get_config() -> Config:
    """The configuration of this process, with `config.yaml` and `.env` of the folder it works in."""
    return Config()


def reload_config() -> Config:
    """Read it again."""
    return get_config().reload_config()
