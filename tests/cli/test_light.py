"""What needs no tensors loads no torch, and usage errors cost nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import environment, run

from manyhands.cli.outcome import _with_values

SPY = """
import sys
from manyhands.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was loaded"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["demo", "--help"], 0),
        (["config", "show", "--json"], 0),
        (["status"], 4),
        (["stop"], 4),
        (["join"], 4),
        (["invite", "--uses", "3"], 4),
        ([], 2),
        (["config"], 2),
    ],
)
def test_light_verbs_load_no_torch(arguments, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SPY, *arguments],
        env=environment(tmp_path / "state"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "No such command 'nope'"),
        (["demo", "--nodes", "0"], "--nodes"),
        (["demo", "--nodes", "1"], "--no-kill"),
        (["status", "--port", "99999"], "--port"),
        (["status", "mh://short@localhost:1"], "token"),
        (["status", "@/no/such/file"], "/no/such/file"),
        (["invite", "--role", "king"], "role: 'king'"),
        (["invite", "--hours", "0"], "hours"),
        (["invite", "--revoke", "a", "--ban", "b"], "--revoke and --ban"),
        (["join", "mh://secretsecretsecret@host:1"], "token"),
        (["join", "--count", "2"], "--on ray"),
        (["worker", "mh://secretsecretsecret@host:1"], "token"),
        (["launch", "train.py", "--nproc", "4"], "train.py does not exist"),
        (["doctor", "mh://short@localhost:1"], "token"),
    ],
)
def test_usage_errors_name_what_is_wrong(arguments, says, tmp_path):
    done = run(*arguments, state_dir=tmp_path / "state", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "secretsecretsecret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nosuch.py:server", "there is no file nosuch.py"),
        ("nosuchmodule:server", "there is no module 'nosuchmodule'"),
        ("plain.py:other", "has no 'other'"),
        ("plain.py", "is int: it must be a CentralServer"),
        ("..plain:x", "is no module:name"),
    ],
)
def test_a_target_that_is_none_is_named(target, says, tmp_path):
    (tmp_path / "plain.py").write_text("server = 3\n")
    done = run("serve", target, state_dir=tmp_path / "state", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_the_users_own_file_shows_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_thing_at_all\n")
    done = run("serve", "broken:server", state_dir=tmp_path / "state", cwd=tmp_path)
    assert done.returncode == 1
    assert "import no_such_thing_at_all" in done.stderr


def test_resume_takes_a_word_or_none():
    assert _with_values(["serve", "a.py:s", "--resume"]) == ["serve", "a.py:s", "--resume=yes"]
    assert _with_values(["serve", "--resume", "auto", "a.py"]) == ["serve", "--resume=auto", "a.py"]
    assert _with_values(["serve", "--resume", "a.py"]) == ["serve", "--resume=yes", "a.py"]


def test_config_show_masks_secrets_and_names_sources(tmp_path):
    (tmp_path / "config.yaml").write_text("network:\n  timeout: 7\n")
    secret = "mh://" + "s" * 48 + "@example.org:5555"
    done = run("config", "show", state_dir=tmp_path / "state", cwd=tmp_path, MANYHANDS_INVITE=secret)
    assert done.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert lines["network.timeout"] == ["7.0", "config.yaml"]
    assert lines["invite"] == ["********", "environment"]
    assert "s" * 48 not in done.stdout + done.stderr
