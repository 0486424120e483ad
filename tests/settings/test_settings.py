"""One value, one winner, and a user can see which and why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import manyhands.settings as settings_package
from manyhands.errors import StorageError, UsageError
from manyhands.settings import ensure_state_dir, explain, load, state_dir
from manyhands.settings.sources import known_keys


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    import os

    for name in list(os.environ):
        if name.upper().startswith("MANYHANDS_"):
            monkeypatch.delenv(name)


def sources(folder: Path) -> dict[str, tuple[str, str]]:
    return {line.key: (line.value, line.source) for line in explain(folder)}


def test_the_defaults_are_the_documented_ones(tmp_path):
    settings = load(tmp_path)
    assert settings.network.timeout == 30.0
    assert settings.network.wait_timeout is None
    assert settings.network.patience_hours == 24.0
    assert settings.monitoring.progress_bars is True
    assert settings.invite is None
    assert {source for _, source in sources(tmp_path).values()} == {"default"}


def test_each_source_beats_the_one_below(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("network:\n  timeout: 1\n  wait_timeout: 1\n  patience_hours: 1\n")
    (tmp_path / ".env").write_text(
        "MANYHANDS_NETWORK__WAIT_TIMEOUT=2\nMANYHANDS_NETWORK__PATIENCE_HOURS=2\nOTHER=1\n"
    )
    monkeypatch.setenv("MANYHANDS_NETWORK__PATIENCE_HOURS", "3")
    seen = sources(tmp_path)
    assert seen["network.timeout"] == ("1.0", "config.yaml")
    assert seen["network.wait_timeout"] == ("2.0", ".env")
    assert seen["network.patience_hours"] == ("3.0", "environment")
    assert seen["monitoring.log_file"] == ("none", "default")
    settings = load(tmp_path, {"network.patience_hours": 4})
    assert settings.network.patience_hours == 4.0


def test_short_names_say_where_a_worker_finds_its_boss(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("MODEL_HOST=10.0.0.2\nMODEL_PORT=1\n")
    monkeypatch.setenv("MODEL_PORT", "1025")
    assert sources(tmp_path)["model.host"] == ("10.0.0.2", ".env (MODEL_HOST)")
    assert sources(tmp_path)["model.port"] == ("1025", "environment (MODEL_PORT)")
    monkeypatch.setenv("MANYHANDS_MODEL__PORT", "1026")
    assert load(tmp_path).model.port == 1026
    monkeypatch.setenv("MANYHANDS_MODEL__PORT", "70000")
    with pytest.raises(UsageError, match=r"model\.port"):
        load(tmp_path)


def test_every_key_is_reached_from_the_environment(tmp_path, monkeypatch):
    values = {
        "network.gpu_host": "gpu",
        "network.cpu_host": "cpu",
        "network.port": "1026",
        "network.timeout": "5",
        "network.heartbeat": "3",
        "network.retry_attempts": "4",
        "network.wait_timeout": "60",
        "network.patience_hours": "0.5",
        "training.batch_size": "8",
        "training.num_workers": "0",
        "training.epochs": "2",
        "training.learning_rate": "0.1",
        "data.transfer_dtype": "uint8",
        "data.on_bad_sample": "quarantine",
        "data.queue_size": "5",
        "data.window_mb": "64",
        "data.flow_control": "false",
        "gpu.device": "cpu",
        "gpu.mixed_precision": "true",
        "gpu.compile_model": "true",
        "model.host": "10.0.0.2",
        "model.port": "1025",
        "monitoring.progress_bars": "no",
        "monitoring.log_level": "DEBUG",
        "monitoring.save_logs": "true",
        "monitoring.log_file": "x.log",
        "colab.ngrok_auth_token": "secret",
        "colab.ngrok_region": "eu",
        "colab.ssh_host": "me@gateway",
        "advanced.idle_seconds": "5",
        "advanced.plain_line_seconds": "2",
        "advanced.shared_memory": "no",
        "invite": "mh://token@host:1",
    }
    assert sorted(values) == sorted(known_keys())
    for key, value in values.items():
        monkeypatch.setenv("MANYHANDS_" + key.upper().replace(".", "__"), value)
    assert {source for _, source in sources(tmp_path).values()} == {"environment"}
    settings = load(tmp_path)
    assert settings.network.wait_timeout == 60.0
    assert settings.monitoring.progress_bars is False
    assert settings.monitoring.log_level == "debug"
    assert settings.gpu.mixed_precision == "bf16"
    assert "secret" not in repr(explain(tmp_path))


@pytest.mark.parametrize("word", ["none", "None", "null", ""])
def test_none_can_be_said_in_the_environment(tmp_path, monkeypatch, word):
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", word)
    assert load(tmp_path).network.wait_timeout is None


def test_an_invite_is_masked_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_INVITE", "mh://SECRET@host:5555")
    settings = load(tmp_path)
    assert settings.invite is not None
    assert settings.invite.get_secret_value() == "mh://SECRET@host:5555"
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(explain(tmp_path))]
    assert not any("SECRET" in text for text in shown)
    assert sources(tmp_path)["invite"] == ("********", "environment")


def test_an_invite_does_not_belong_in_a_committed_file(tmp_path):
    (tmp_path / "config.yaml").write_text("invite: mh://SECRET@h:1\n")
    with pytest.raises(UsageError, match="an invite is a secret") as caught:
        load(tmp_path)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "network:\n  timout: 3\n",
            r"config.yaml: there is no setting 'network.timout'; did you mean network.timeout\?",
        ),
        ("netwrok:\n  timeout: 3\n", r"no setting 'netwrok'"),
        ("monitoring:\n  timeout: 3\n", r"'monitoring.timeout'; did you mean network.timeout\?"),
        ("network: 3\n", "network is a section of keys"),
        ("network:\n  timeout: soon\n", "config.yaml: network.timeout: .*number"),
        ("network:\n  timeout: -1\n", "config.yaml: network.timeout: .*greater than 0"),
        ("network:\n  timeout: .nan\n", "network.timeout: .*finite"),
        ("network: [\n", r"config.yaml line \d: this is not YAML"),
        ("- a\n- b\n", "config.yaml"),
        ("just words\n", "config.yaml"),
    ],
)
def test_a_bad_config_file_is_named_with_its_key(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


def test_an_empty_config_file_is_fine(tmp_path):
    (tmp_path / "config.yaml").write_text("# nothing yet\n")
    assert load(tmp_path) == load(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("network:\n")
    assert load(tmp_path).network.timeout == 30.0


def test_a_slip_in_env_files_and_environment_is_named(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("MANYHANDS_INVTE=mh://x@h:1\n")
    with pytest.raises(
        UsageError, match=r"\.env: MANYHANDS_INVTE sets nothing; did you mean MANYHANDS_INVITE"
    ):
        load(tmp_path)
    (tmp_path / ".env").write_text("MANYHANDS_LATER=1\n")
    with pytest.raises(UsageError, match=r"\.env: MANYHANDS_LATER sets nothing"):
        load(tmp_path)
    (tmp_path / ".env").unlink()
    monkeypatch.setenv("MANYHANDS_LATER", "1")
    load(tmp_path)
    monkeypatch.setenv("MANYHANDS_NETWORK__TIMOUT", "1")
    with pytest.raises(UsageError, match=r"environment: .*did you mean MANYHANDS_NETWORK__TIMEOUT"):
        load(tmp_path)


def test_a_bad_value_in_the_environment_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_MONITORING__LOG_LEVEL", "loud")
    with pytest.raises(UsageError, match=r"environment: monitoring.log_level: .*'debug'"):
        load(tmp_path)
    monkeypatch.delenv("MANYHANDS_MONITORING__LOG_LEVEL")
    monkeypatch.setenv("MANYHANDS_NETWORK", "30")
    with pytest.raises(
        UsageError, match="environment: MANYHANDS_NETWORK is a section; set MANYHANDS_NETWORK__KEY"
    ):
        load(tmp_path)
    monkeypatch.delenv("MANYHANDS_NETWORK")
    with pytest.raises(UsageError, match=r"argument: there is no setting 'network.ports'"):
        load(tmp_path, {"network.ports": 1})


def test_the_state_folder_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_dir() == tmp_path / "home" / ".local" / "state" / "manyhands"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_dir() == tmp_path / "home" / ".local" / "state" / "manyhands"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_dir() == tmp_path / "xdg" / "manyhands"
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "own"))
    (tmp_path / "own").mkdir(mode=0o755)
    assert ensure_state_dir() == tmp_path / "own"
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    load(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match="MANYHANDS_STATE_DIR"):
        ensure_state_dir()
    monkeypatch.setenv("MANYHANDS_STATE_DIR", "relative")
    with pytest.raises(UsageError, match="absolute"):
        state_dir()


def test_settings_load_no_torch():
    program = "import sys, manyhands.settings as s; s.load(); print('torch' in sys.modules)"
    root = Path(settings_package.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {program}"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert done.stdout.strip() == "False"
