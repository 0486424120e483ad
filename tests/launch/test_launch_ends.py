"""How launches end that are interrupted, stopped or killed: at once, with the right code, and nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from launching import Launcher

from manyhands.clock import SystemClock
from manyhands.testing.process import wait_for

RANK = "import os, sys, time, signal, subprocess\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n"


def test_ctrl_c_while_torch_is_being_loaded_starts_nothing(launch: Launcher) -> None:
    script = launch.write("raise SystemExit('a rank was started')")
    # The signal comes at the first file of torch's that is opened, and the import goes on after what it raises.
    program = (
        "import os, signal, sys\n"
        "def hook(event, details):\n"
        "    if event == 'import' and details[0] == 'torch':\n"
        "        try:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n            pass\n"
        "sys.addaudithook(hook)\n"
        "from manyhands.cli import main\n"
        f"sys.exit(main(['launch', '--nproc', '1', {str(script)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "manyhands: interrupted before the ranks were started\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_whole_tree(
    launch: Launcher, is_gone: Callable[[int], bool], number: signal.Signals, code: int
) -> None:
    script = launch.write(
        RANK
        + """
child = subprocess.Popen(["sleep", "1000"])
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(1000)
"""
    )
    launcher = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "launch", "--nproc", "2", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert launcher.stdout is not None
    pids = [
        int(pid)
        for _ in range(2)
        for pid in re.findall(r"\d+", launcher.stdout.readline().partition("pids")[2])
    ]
    assert len(pids) == 4
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == code
    assert f"stopped by {number.name}" in err
    wait_for(lambda: all(is_gone(pid) for pid in pids), 5.0, "the end of all ranks and their children")


@pytest.mark.slow
def test_a_second_signal_does_not_wait(launch: Launcher, is_gone: Callable[[int], bool]) -> None:
    script = launch.write(
        RANK
        + """
signal.signal(signal.SIGINT, lambda *_: print("asked", flush=True))
print("pids", os.getpid(), flush=True)
while True:
    time.sleep(1)
"""
    )
    launcher = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "launch", "--nproc", "1", str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline().split()[1])
    launcher.send_signal(signal.SIGINT)
    assert launcher.stdout.readline() == "asked\n"
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    wait_for(lambda: is_gone(pid), 5.0, "the end of the rank")


@pytest.mark.slow
def test_whoever_stops_reading_stops_nothing(launch: Launcher) -> None:
    script = launch.write(RANK + "for i in range(20000): print('line', i)\nPath('done').touch()")
    command = f"{sys.executable} -m manyhands launch --nproc 1 {script} | head -1"
    assert (
        subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60).stdout == "line 0\n"
    )
    clock = SystemClock()
    deadline = clock.monotonic() + 20
    while not (launch.folder / "done").exists() and clock.monotonic() < deadline:
        clock.sleep(0.05)
    assert (launch.folder / "done").exists()


def test_a_launcher_that_is_killed_leaves_no_rank(launch: Launcher, is_gone: Callable[[int], bool]) -> None:
    script = launch.write(RANK + "print('pid', os.getpid(), flush=True)\ntime.sleep(1000)\n")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "launch", "--nproc", "2", str(script)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    pids = [int(launcher.stdout.readline().split()[-1]) for _ in range(2)]
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: all(is_gone(pid) for pid in pids), 10.0, "the end of the ranks")
