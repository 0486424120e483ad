"""The configuration that scripts read: typed, layered, and the same as the example files and the page say."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from manyhands.config import Config, get_config, reload_config
from manyhands.errors import UsageError
from manyhands.settings import Settings, explain, load
from manyhands.settings.defaults import default, settled
from manyhands.settings.model import SHORT_VARIABLES, SPLIT_VARIABLES
from manyhands.settings.sources import known_keys

ROOT = Path(__file__).parents[2]
SHORT = {**SPLIT_VARIABLES, **SHORT_VARIABLES}


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.upper().startswith("MANYHANDS_") or name in SHORT:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_a_script_reads_typed_values(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("network:\n  gpu_host: 192.0.2.7\ntraining:\n  num_workers: 4\n")
    (tmp_path / ".env").write_text("BATCH_SIZE=128\nTRAINING_PORT=1\n")
    monkeypatch.setenv("TRAINING_PORT", "29501")
    config = Config()
    assert config.get("training.batch_size") == 128
    assert config["network.port"] == 29501
    assert config.get("training.num_workers") == 4
    assert config.get_network_config()["gpu_host"] == "192.0.2.7"
    assert {"port", "gpu_host", "cpu_host"} <= set(config.get_network_config())
    assert config.get_training_config()["learning_rate"] == 0.001
    assert config.get_gpu_config() == {"device": "auto", "mixed_precision": "fp32", "compile_model": False}
    assert config.get_data_config()["flow_control"] is True
    assert config.get_monitoring_config()["log_level"] == "warning"
    assert config["training"]["epochs"] == 10


def test_what_is_not_there_has_a_default_or_a_name(monkeypatch):
    config = Config()
    assert config.get("training.nothing", 5) == 5
    assert config.get("network.wait_timeout", 60) == 60  # none counts as not set
    assert config.get("training.nothing") is None
    assert "network.port" in config
    assert "network.prt" not in config
    with pytest.raises(KeyError, match=r"no setting 'network\.prt'; did you mean network\.port"):
        config["network.prt"]
    monkeypatch.setenv("BATCH_SIZE", "many")
    with pytest.raises(UsageError, match=r"environment \(BATCH_SIZE\): training\.batch_size"):
        Config().get("training.batch_size")


def test_it_is_read_once_and_again_when_asked(monkeypatch):
    get_config.cache_clear()
    assert get_config().get("training.epochs") == 10
    monkeypatch.setenv("EPOCHS", "3")
    assert get_config().get("training.epochs") == 10
    assert reload_config().get("training.epochs") == 3
    monkeypatch.setenv("EPOCHS", "4")
    assert get_config().reload_config() is get_config()
    assert get_config()["training.epochs"] == 4
    get_config.cache_clear()


def test_a_token_is_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("NGROK_AUTH_TOKEN", "2abcSECRET")
    assert Config().get_colab_config()["ngrok_auth_token"] == "2abcSECRET"
    assert "SECRET" not in repr(explain(split=True)) + repr(Config().settings)
    (tmp_path / "config.yaml").write_text("colab:\n  ngrok_auth_token: 2abcSECRET\n")
    with pytest.raises(
        UsageError, match=r"is a secret; set NGROK_AUTH_TOKEN, or put it into \.env"
    ) as caught:
        load()
    assert "2abc" not in str(caught.value)


@pytest.mark.parametrize(("variable", "key"), SHORT.items())
def test_each_short_variable_reaches_its_key_and_the_long_name_beats_it(monkeypatch, variable, key):
    values = {"network.port": ("1", "2"), "gpu.mixed_precision": ("bf16", "fp16")}
    values |= {"monitoring.log_level": ("info", "debug"), "monitoring.progress_bars": ("false", "true")}
    first, second = values.get(key, ("7", "8"))
    monkeypatch.setenv(variable, first)
    row = next(row for row in explain(split=True) if row.key == key)
    assert row.source == f"environment ({variable})"
    monkeypatch.setenv("MANYHANDS_" + key.upper().replace(".", "__"), second)
    assert next(row for row in explain(split=True) if row.key == key).source == "environment"


def test_short_variables_of_split_mode_leave_the_other_modes_alone(monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "verbose")
    assert load().monitoring.log_level == "warning"
    with pytest.raises(UsageError, match="LOG_LEVEL"):
        load(split=True)


def test_an_argument_beats_a_setting_also_where_it_is_the_default(monkeypatch):
    def train(port: int = default("network.port"), compile_model: bool = default("gpu.compile_model")):
        return settled(port), settled(compile_model)

    assert str(inspect.signature(train)).startswith("(port: 'int' = 29500, compile_model: 'bool' = False)")
    assert train() == (29500, False)
    monkeypatch.setenv("TRAINING_PORT", "1024")
    monkeypatch.setenv("MANYHANDS_GPU__COMPILE_MODEL", "true")
    assert train() == (1024, True)
    assert train(29500, False) == (29500, False)


@pytest.mark.parametrize("key", known_keys())
def test_a_default_looks_like_its_value(key):
    value = default(key) if key != "invite" else None
    assert value == Config()[key] if value is not None else True
    assert repr(value) == repr(Config()[key])


def test_the_example_files_are_complete_and_say_the_defaults(tmp_path):
    secrets = {"colab.ngrok_auth_token", "invite"}
    example = yaml.safe_load((ROOT / "config.yaml.example").read_text())
    keys = {f"{section}.{key}" for section, values in example.items() for key in values}
    assert keys == set(known_keys()) - secrets
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml.example").read_text())
    assert load(tmp_path) == Settings()

    lines = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^#([A-Z_]+=)", r"\1", lines, flags=re.MULTILINE))
    names = set(dotenv_values(tmp_path / ".env"))
    long = {"MANYHANDS_" + key.upper().replace(".", "__"): key for key in known_keys()}
    reached = {SHORT.get(name) or long[name] for name in names}
    assert reached == set(known_keys())
    assert load(tmp_path, split=True) == Settings()


def test_the_page_has_a_row_for_every_key_with_its_default_and_short_variable():
    page = (ROOT / "CONFIGURATION.md").read_text()
    rows = {row.key: row.value for row in explain()}
    stated = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \| (?:`(\w+)`)? ?\| ", page, re.MULTILINE)
    assert {key: value for key, value, _ in stated} == {k: v for k, v in rows.items() if k != "invite"}
    assert {short: key for key, _, short in stated if short} == SHORT


def test_reading_the_configuration_loads_no_torch():
    program = "import sys, manyhands.config as c; c.get_config()['network']; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
