"""Launches on one machine, with real processes: what is printed, who is blamed, what is left behind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Launcher

from manyhands.testing.process import wait_for

RANK = "import os, sys, time, signal, subprocess\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n"


def test_ranks_get_torchruns_environment_and_lines_are_tagged(launch: Launcher) -> None:
    done = launch(
        RANK
        + """
print("alike")
print("rank", rank, os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"], sys.argv[1:])
print("to stderr", file=sys.stderr)
""",
        arguments=("--lr", "0.1"),
    )
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "[0-3] alike"
    assert sorted(lines[1:]) == [f"[{r}] rank {r} {r} 4 127.0.0.1 ['--lr', '0.1']" for r in range(4)]
    assert done.err == "[0-3] to stderr\n"


def test_one_rank_alone_is_not_tagged(launch: Launcher) -> None:
    assert launch("print('plain')", "--nproc", "1").out == "plain\n"


def test_a_module_and_a_program(launch: Launcher) -> None:
    launch.write("print('a module')", "mine.py")
    assert launch.words("--nproc", "1", "-m", "mine").out == "a module\n"
    assert launch.words("--nproc", "1", "--no_python", "echo", "a program").out == "a program\n"


def test_the_traceback_of_the_rank_that_failed_first_is_last(launch: Launcher) -> None:
    started = time.monotonic()
    done = launch(
        RANK
        + """
if rank == 1:
    sys.stderr.write("about to fail\\n")
    raise ValueError("boom\\n  in two lines")
while not Path("follow").exists() and rank == 0:
    time.sleep(0.01)
time.sleep(1000)
""",
        "--nproc",
        "3",
    )
    assert time.monotonic() - started < 5 + 3  # seconds from the failure to the end, and to the failure
    assert done.code == 1
    script = launch.folder / "script.py"
    assert done.err.endswith(
        "manyhands: rank 1 failed first, with exit code 1\n"
        "  ranks 0,2 stopped by the launcher\n"
        "Traceback (most recent call last):\n"
        f'  File "{script}", line 7, in <module>\n'
        '    raise ValueError("boom\\n  in two lines")\n'
        "ValueError: boom\n  in two lines\n"
    )
    assert done.err.count("Traceback") == 1


def test_consequences_are_folded(launch: Launcher) -> None:
    done = launch(
        RANK
        + """
if rank == 2:
    Path("failed").touch()
    time.sleep(0.3)  # leaving takes longer than its peers'
    sys.exit(7)
while not Path("failed").exists():
    time.sleep(0.01)
raise RuntimeError(f"Connection closed by peer [127.0.0.1]:{1000 + rank}")
"""
    )
    assert done.code == 7
    assert done.err == (
        "manyhands: rank 2 failed first, with exit code 7\n"
        "  ranks 0-1,3 followed: RuntimeError: Connection closed by peer [127.0.0.1]:1000\n"
    )


@pytest.mark.slow
def test_a_rank_that_ends_while_others_wait_for_it_is_named(launch: Launcher) -> None:
    done = launch(
        """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if dist.get_rank() == 1:
    dist.destroy_process_group()
    sys.exit(0)
dist.all_reduce(torch.ones(1))
""",
        "--nproc",
        "3",
    )
    assert done.code == 1
    said = done.err[done.err.index("manyhands: rank") :].splitlines()
    assert said[0] == "manyhands: rank 1 ended first, with exit code 0, while others waited for it"
    assert said[1].startswith("  ranks 0,2 followed: RuntimeError")
    assert said[2] == "Traceback (most recent call last):"


def test_a_signal_is_128_and_its_number_and_children_are_swept(
    launch: Launcher, is_gone: Callable[[int], bool]
) -> None:
    done = launch(
        RANK
        + """
child = subprocess.Popen(["sleep", "1000"])
Path(f"child-{rank}").write_text(str(child.pid))
while not all(Path(f"child-{r}").exists() and Path(f"child-{r}").read_text() for r in range(2)):
    time.sleep(0.01)
if rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1000)
""",
        "--nproc",
        "2",
    )
    assert done.code == 137
    assert "rank 0 was killed first, by SIGKILL" in done.err
    children = [int((launch.folder / f"child-{rank}").read_text()) for rank in range(2)]
    wait_for(lambda: all(is_gone(pid) for pid in children), 5.0, "the end of the ranks' children")


def test_a_restart_after_sigkill(launch: Launcher) -> None:
    done = launch(
        RANK
        + """
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)
print("second attempt")
""",
        "--nproc",
        "2",
        "--max-restarts",
        "1",
    )
    assert done.code == 0
    assert done.out == "[0-1] second attempt\n"
    assert "rank 1 was killed first, by SIGKILL" in done.err
    assert "restart 1 of 1" in done.err


def test_no_restart_is_left(launch: Launcher) -> None:
    done = launch(RANK + "sys.exit(3 + rank)", "--nproc", "1", "--max-restarts", "1")
    assert done.code == 3
    assert done.err.endswith("manyhands: rank 0 failed first, with exit code 3\n")


def test_logs_go_to_files_too(launch: Launcher) -> None:
    script = RANK + "print('out', rank)\nprint('err', rank, file=sys.stderr)\nraise KeyError('last words')"
    done = launch(script, "--nproc", "2", "--log-dir", "logs")
    files = {path: path.read_text() for path in Path("logs").rglob("*.log")}
    for rank in range(2):
        [out] = [text for path, text in files.items() if path.parts[-2:] == (str(rank), "stdout.log")]
        [err] = [text for path, text in files.items() if path.parts[-2:] == (str(rank), "stderr.log")]
        assert out == f"out {rank}\n"
        assert err.startswith(f"err {rank}\nTraceback")
    assert "[0] out 0\n" in done.out
    assert all(socket.gethostname() in str(path) for path in files)


def test_torchruns_redirects_and_filters(launch: Launcher) -> None:
    script = RANK + "print('apple' if rank else 'pear')"
    options = (
        "--nproc",
        "2",
        "--log-dir",
        "logs",
        "-r",
        "0:1",
        "-t",
        "1:1",
        "--duplicate-stdout-filters",
        "apple",
    )
    done = launch(script, *options)
    assert done.out == "[1] apple\n"
    assert [path.read_text() for path in Path("logs").rglob("0/stdout.log")] == ["pear\n"]
    assert [path.read_text() for path in Path("logs").rglob("filtered_stdout.log")] == ["[1] apple\n"]
    assert launch(script, "--nproc", "2", "--local-ranks-filter", "0").out == "[0] pear\n"


def test_a_port_that_was_asked_for_and_is_taken_names_its_holder(launch: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = launch("", "--master-port", str(port))
        assert done.code == 2
        assert f"--master-port {port} is in use by process {os.getpid()}" in done.err
        assert "leave it out and a free one is chosen" in done.err


def test_a_port_that_was_asked_for_is_used(launch: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = RANK + "print(os.environ['MASTER_ADDR'], os.environ['MASTER_PORT'])"
    assert launch(script, "--nproc", "1", "--master-port", str(port)).out == f"127.0.0.1 {port}\n"
    if socket.has_ipv6:
        assert launch(script, "--nproc", "1", "--master_addr", "[::1]").out.startswith("::1 ")


def test_a_script_that_does_not_exist(launch: Launcher) -> None:
    done = launch.words("nowhere.py")
    assert done.code == 2
    assert (
        done.err
        == f"manyhands: the script nowhere.py does not exist (looked in {launch.folder}): check its name\n"
    )
    assert launch.words("--no-python", "no-such-program").code == 2
    assert launch.words(str(launch.folder)).code == 2


@pytest.mark.parametrize("option", ["--tee", "--redirects", "--local-ranks-filter"])
def test_an_option_for_logs_that_makes_no_sense_is_named(launch: Launcher, option: str) -> None:
    done = launch("", option, "nine")
    assert done.code == 2
    assert done.err.startswith(f"manyhands: {option} nine: ")
