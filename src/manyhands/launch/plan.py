"""What a launch is to be: hosts, ports, numbers of processes, and the line to type on the next machine. Pure.

::

    launch script.py                       one machine          a free port on loopback
    launch --nnodes 2 script.py            this is node 0       29500 if it is free; a line to type is printed
    launch --nnodes 2 --node-rank 1
           --master-addr A --master-port P this is node 1
    launch --hosts a,b script.py           one command          ssh starts node 0 on a, node 1 on b
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from manyhands.errors import UsageError

USUAL_PORT = 29500
CPU_PROCESSES = 4
"""How many processes a machine without an accelerator gets."""
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

# A leading dash would be an option of ssh's.
_HOST = re.compile(
    r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.@%-]*|(?:[A-Za-z0-9_.-]+@)?\[[0-9A-Fa-f:.%]+\])(?::(?P<slots>\d+))?"
)


@dataclass(frozen=True)
class Host:
    """A machine as ssh knows it (`name`, `user@name`), and how many processes it gets (None: its own default)."""

    name: str
    num_processes: int | None = None

    @property
    def ssh_name(self) -> str:
        """What ssh takes: an IPv6 address without its brackets."""
        return self.name.replace("[", "").replace("]", "")


def parse_hosts(text: str) -> tuple[Host, ...]:
    """``a,user@b:4,[fd00::2]:2`` (a number is that of processes). UsageError for no host and for one twice."""
    return _checked([_host(word.strip(), "--hosts") for word in text.split(",") if word.strip()], "--hosts")


def parse_hostfile(text: str, where: str) -> tuple[Host, ...]:
    """A host a line, ``a``, ``a:4`` or ``a slots=4``; ``#`` begins a comment. UsageError naming the line."""
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host = _host(words[0], f"{where} line {number}")
        for word in words[1:]:
            slots = re.fullmatch(r"slots=([1-9]\d*)", word)
            if slots is None:
                raise UsageError(f"{where} line {number}: {word!r} is not slots=N")
            host = Host(host.name, int(slots[1]))
        hosts.append(host)
    return _checked(hosts, where)


def _host(text: str, where: str) -> Host:
    found = _HOST.fullmatch(text)
    if found is None or found["slots"] == "0":
        raise UsageError(f"{where}: {text[:80]!r} is not a host: write name, user@name, name:processes")
    return Host(found["name"], int(found["slots"]) if found["slots"] else None)


def _checked(hosts: Sequence[Host], where: str) -> tuple[Host, ...]:
    if not hosts:
        raise UsageError(f"{where}: no host is named")
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where}: {name} is named twice; give it more processes instead: {name}:8")
    return tuple(hosts)


def parse_nodes(text: str) -> tuple[int, int]:
    """``2`` or ``1:4`` as (least, most). UsageError for anything else."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise UsageError(f"--nnodes {text}: give a number of machines from 1 on, or LEAST:MOST")
    return least, most


def check_node_rank(node_rank: int, num_nodes: int) -> None:
    """UsageError for a rank outside the machines there are."""
    if not 0 <= node_rank < num_nodes:
        raise UsageError(
            f"--node-rank {node_rank}: with --nnodes {num_nodes} the machines are numbered 0 to {num_nodes - 1}"
        )


def processes(asked: str | None, accelerators: int, cores: int) -> int:
    """How many ranks this machine gets.

    `asked` is None (one an accelerator, else 4), a number, ``auto`` (one an accelerator, else one a core),
    ``gpu`` or ``cpu``: torchrun's words. UsageError for anything else.
    """
    if asked is None:
        return accelerators or CPU_PROCESSES
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    match asked:
        case "auto":
            return accelerators or cores
        case "cpu":
            return cores
        case "gpu" | "xpu" if accelerators:
            return accelerators
        case "gpu" | "xpu":
            raise UsageError(f"--nproc {asked}: torch sees no such device here; use --nproc N or --nproc cpu")
    raise UsageError(f"--nproc {asked}: give a number from 1 on, auto, cpu or gpu")


def bare_address(address: str) -> str:
    """An IPv6 address without the brackets that a URL or torchrun puts around it."""
    return address.strip().removeprefix("[").removesuffix("]")


def join_line(
    num_nodes: str,
    node_rank: int | str,
    address: str,
    port: int,
    rest: Sequence[str],
    program: str = "manyhands launch",
) -> str:
    """What to type on another machine; `rest` is the script and its arguments, and options to repeat."""
    host = f"[{address}]" if ":" in address else address
    own = f"--nnodes {num_nodes} --node-rank {node_rank} --master-addr {host} --master-port {port}"
    return f"{program} {own} {shlex.join(rest)}"
