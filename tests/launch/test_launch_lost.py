"""A machine of a launch that says nothing more: cut off, stopped, killed. Each of the others ends, and names it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
from launching import Launcher
from machines import PYTHON, Machine, cut, free_port, two_namespaces

from manyhands.observe.silence import Silence
from manyhands.testing.process import wait_for

LAUNCH = (PYTHON, "-m", "manyhands", "launch")
FOR_EVER = """
import os, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
print("pid", os.getpid(), flush=True)
while True:
    dist.all_reduce(torch.ones(1))
"""
ASLEEP = "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(1000)\n"
HOST = socket.gethostname()


def start(machines: tuple[Machine, Machine], script: Path, *flags: str) -> list[subprocess.Popen[str]]:
    """Both machines, once each rank has printed its pid: node 0, and node 1."""
    at = (
        "--nproc",
        "1",
        "--nnodes",
        "2",
        "--master-addr",
        machines[0].address,
        "--master-port",
        str(free_port()),
    )
    launched = [
        machine.start(*LAUNCH, *at, "--node-rank", str(rank), *flags, str(script), folder=script.parent)
        for rank, machine in enumerate(machines)
    ]
    for process in launched:
        assert process.stdout is not None
        assert "pid" in process.stdout.readline()
    return launched


def end(launched: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(exit code, stderr) of each; whoever goes on for a minute is killed."""
    try:
        said = [process.communicate(timeout=60)[1] for process in launched]
    finally:
        for process in launched:
            process.kill()
            process.wait()
    return [(process.returncode, err) for process, err in zip(launched, said, strict=True)]


def has_rank(launched: subprocess.Popen[str], script: Path) -> bool:
    """Whether a launcher has a rank that runs."""
    for child in psutil.Process(launched.pid).children():
        with contextlib.suppress(psutil.Error):
            if str(script) in child.cmdline():
                return True
    return False


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHANDS_NETWORK__TIMEOUT", "5")


def test_a_peer_is_silent_for_as_long_as_somebody_listens() -> None:
    silence = Silence()
    assert [silence.look("a", now) for now in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert silence.look("a", 100.0) == 2.0  # who looks so late was stopped himself
    assert silence.look("b", 100.5) == 0.0
    assert silence.look("b", 101.0) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("restarts", ["0", "1"])
def test_a_cut_cable_ends_the_launch_on_both_sides(launch: Launcher, restarts: str) -> None:
    with two_namespaces() as machines:
        launched = start(machines, launch.write(FOR_EVER), "--max-restarts", restarts)
        cut(machines[0])
        ended = end(launched)
    for (code, err), other in zip(ended, ("node 1", "node 0"), strict=True):
        assert code == 3, err
        assert f"{other} ({HOST}) has been silent for 5 s (network.timeout)" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_launcher_that_is_stopped_ends_the_other(launch: Launcher, number: int) -> None:
    """Ctrl-Z, and nobody comes back."""
    launched = start((HERE, HERE), launch.write(ASLEEP))
    launched[number].send_signal(signal.SIGSTOP)
    code, err = end([launched[1 - number]])[0]
    assert code == 3, err
    assert f"node {number} ({HOST}) has been silent for 5 s" in err
    launched[number].send_signal(signal.SIGCONT)
    code, err = end([launched[number]])[0]
    assert code != 0, err
    assert f"node {1 - number} ({HOST})" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_launcher_that_is_killed_ends_the_other(launch: Launcher, number: int) -> None:
    launched = start((HERE, HERE), launch.write(ASLEEP))
    launched[number].kill()
    code, err = end([launched[1 - number]])[0]
    assert code == 3, err
    assert f"node {number} ({HOST})" in err
    end([launched[number]])


@pytest.mark.slow
def test_a_launcher_that_is_interrupted_ends_the_other(launch: Launcher) -> None:
    launched = start((HERE, HERE), launch.write(ASLEEP))
    launched[1].send_signal(signal.SIGINT)
    [(code, err), (own_code, _)] = end(launched)
    assert own_code == 130
    assert code == 3, err
    assert f"the launcher on node 1 ({HOST}) was stopped" in err


@pytest.mark.slow
def test_a_rank_that_ends_early_on_another_machine_is_named(launch: Launcher) -> None:
    text = FOR_EVER.replace("while True", "while dist.get_rank() == 0") + "dist.destroy_process_group()\n"
    script = launch.write(text)
    [(code, err), (other_code, other_err)] = end(start((HERE, HERE), script))
    for each_code, each_err in ((code, err), (other_code, other_err)):
        assert each_code == 1, each_err
        assert f"rank 1 on {HOST} ended first, with exit code 0, while others waited for it" in each_err


@pytest.mark.slow
def test_ranks_that_have_ended_well_are_not_restarted(launch: Launcher) -> None:
    script = launch.write("""
import os, time
from pathlib import Path
print("pid", flush=True)
if os.environ["RANK"] == "0":
    while not Path("go").exists():
        time.sleep(0.01)
    raise ValueError("late")
""")
    launched = start((HERE, HERE), script, "--max-restarts", "1")
    wait_for(lambda: not has_rank(launched[1], script), 60, "the end of rank 1")
    (launch.folder / "go").touch()
    [(code, err), (other_code, other_err)] = end(launched)
    assert code == 5, err
    assert "ValueError: late" in err
    assert f"all ranks on node 1 ({HOST}) had ended well" in err
    assert other_code != 0, other_err


HERE = Machine("", "127.0.0.1")
