"""Every key of split mode changes something; where the effect is another room's, its own tests show it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from manyhands.clock import SystemClock
from manyhands.errors import StorageError, UsageError
from manyhands.observe.logfile import logging_to
from manyhands.settings import load
from manyhands.settings.model import SPLIT_VARIABLES
from manyhands.split.loader import CPULoader
from manyhands.split.meeting import bounds_of, dialling, log_file
from manyhands.split.trainer import GPUTrainer
from manyhands.wire.limits import Limits, client_options


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.upper().startswith("MANYHANDS_") or name in SPLIT_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_trainers_arguments_come_from_the_settings_unless_they_are_given(monkeypatch):
    for name, value in {"GPU_DEVICE": "cpu", "MIXED_PRECISION": "true", "LEARNING_RATE": "0.5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANYHANDS_GPU__COMPILE_MODEL", "true")
    trainer = GPUTrainer()
    trainer.setup_model(nn.Linear(2, 2))
    setup = trainer._ready().setup
    assert (setup.precision, setup.learning_rate, setup.compile) == ("bf16", 0.5, True)
    assert trainer._ready().device == torch.device("cpu")
    trainer.setup_model(nn.Linear(2, 2), learning_rate=0.001, precision="fp32", compile=False)
    setup = trainer._ready().setup
    assert (setup.precision, setup.learning_rate, setup.compile) == ("fp32", 0.001, False)
    monkeypatch.setenv("GPU_DEVICE", "abacus")
    with pytest.raises(UsageError, match="abacus"):
        GPUTrainer().setup_model(nn.Linear(2, 2))


def test_the_loaders_arguments_come_from_the_settings_unless_they_are_given(monkeypatch):
    monkeypatch.setenv("BATCH_SIZE", "7")
    monkeypatch.setenv("MANYHANDS_DATA__TRANSFER_DTYPE", "float16")
    loader = CPULoader()
    loader.setup_dataset((torch.zeros(20, 2), torch.zeros(20)))
    assert loader._supply.batch_size == 7
    assert loader._supply.recipes["train"].transfer_dtype == "float16"
    loader.setup_dataset((torch.zeros(20, 2), torch.zeros(20)), batch_size=64, transfer_dtype=None)
    assert loader._supply.batch_size == 64
    assert loader._supply.recipes["train"].transfer_dtype is None
    monkeypatch.setenv("MANYHANDS_DATA__TRANSFER_DTYPE", "int3")
    with pytest.raises(UsageError, match="int3"):
        loader.setup_dataset((torch.zeros(20, 2), torch.zeros(20)))


def test_what_is_in_flight_is_bounded_and_flow_control_stays_on(monkeypatch, capsys):
    monkeypatch.setenv("MANYHANDS_DATA__WINDOW_MB", "2")
    monkeypatch.setenv("MANYHANDS_DATA__QUEUE_SIZE", "3")
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "9")
    bounds = bounds_of(load())
    assert (bounds.window_bytes, bounds.queue_size, bounds.wait_seconds) == (2 << 20, 3, 9.0)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MANYHANDS_DATA__FLOW_CONTROL", "false")
    assert bounds_of(load()) == bounds
    assert "data.flow_control=false is ignored" in capsys.readouterr().err


def test_signs_of_life_and_retries_follow_the_settings(monkeypatch):
    assert dict(client_options(Limits.configured()))["grpc.keepalive_time_ms"] == 10_000
    monkeypatch.setenv("MANYHANDS_NETWORK__HEARTBEAT", "2")
    assert dict(client_options(Limits.configured()))["grpc.keepalive_time_ms"] == 2000
    monkeypatch.setenv("MANYHANDS_NETWORK__TIMEOUT", "3")
    options = dict(client_options(Limits.configured()))
    assert (options["grpc.keepalive_time_ms"], options["grpc.keepalive_timeout_ms"]) == (1000, 2000)
    monkeypatch.setenv("MANYHANDS_NETWORK__RETRY_ATTEMPTS", "4")
    monkeypatch.setenv("MANYHANDS_NETWORK__PATIENCE_HOURS", "2")
    door = dialling("localhost", 1, None, load(), secure=True, clock=SystemClock())
    assert (door._attempts, door._patience_seconds) == (4, 7200.0)


def test_a_log_file_is_written_for_as_long_as_a_job_goes_on(monkeypatch, tmp_path):
    logger = logging.getLogger("manyhands.split")
    with log_file(load()):
        logger.info("nobody asked")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MANYHANDS_MONITORING__SAVE_LOGS", "true")
    with log_file(load()):
        logger.info("by default")
    monkeypatch.setenv("MANYHANDS_MONITORING__LOG_FILE", "own.log")
    monkeypatch.setenv("MANYHANDS_MONITORING__LOG_LEVEL", "debug")
    with log_file(load()):
        logger.debug("in detail")
    logger.warning("afterwards")
    assert "by default" in (tmp_path / "manyhands.log").read_text()
    written = (tmp_path / "own.log").read_text()
    assert "DEBUG manyhands.split: in detail" in written
    assert "afterwards" not in written
    with (
        pytest.raises(StorageError, match="cannot be written"),
        logging_to(str(tmp_path / "no" / "x"), "info"),
    ):
        pass
