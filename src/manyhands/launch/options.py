"""The command line of `manyhands launch`: torchrun's own parser, and what we add to it.

Every option of torchrun's is taken with torchrun's meaning, with `-` and `_` alike and with its ``PET_*``
variables. Ours are --nproc (its --nproc-per-node), --hosts, --hostfile, --ssh, --remote-python, and --on, --count
and --address, which `clusters` turns into --hosts before anything here looks at them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.run import get_args_parser

from manyhands.errors import UsageError
from manyhands.launch.plan import Host, check_node_rank, parse_hostfile, parse_hosts, parse_nodes

PROGRAM = "manyhands launch"
ENGINES = ("ray",)
CLUSTER_OPTIONS = ("--on", "--count", "--address")
_OWN_DEFAULTS = ("nproc_per_node", "master_addr", "log_dir", "tee", "rdzv_backend", "monitor_interval")
"""Where we must know whether something was asked for, or choose otherwise than torchrun."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A sentence and exit code 2, without a page of usage."""
        if "training_script" in message:  # argparse names what follows a script as well
            message = "no script is named"
        raise UsageError(f"{message}; `{PROGRAM} --help` lists the options")


@dataclass(frozen=True)
class Order:
    """A command line that was understood. `torchrun` is the namespace of its own options."""

    torchrun: argparse.Namespace
    least_nodes: int
    most_nodes: int
    hosts: tuple[Host, ...] = ()
    ssh: str = "ssh"
    remote_python: str = sys.executable
    arguments: tuple[str, ...] = field(default=(), repr=False)
    """The command line itself, for the other machines."""

    @property
    def script(self) -> str:
        """The file, module or program that every rank runs."""
        return str(self.torchrun.training_script)

    @property
    def script_arguments(self) -> list[str]:
        """What the script is given."""
        return list(self.torchrun.training_script_args)

    @property
    def nproc(self) -> str | None:
        """What was asked for; None for the machine's own default."""
        return None if self.torchrun.nproc_per_node is None else str(self.torchrun.nproc_per_node)

    @property
    def is_elastic(self) -> bool:
        """Whether machines may come and go."""
        return self.least_nodes < self.most_nodes

    @property
    def own_rendezvous(self) -> bool:
        """Whether the ranks' meeting point is ours; with --rdzv-backend or --standalone it is torch's."""
        return self.torchrun.rdzv_backend is None and not self.torchrun.standalone


def parser() -> argparse.ArgumentParser:
    """Our options beside those of torchrun."""
    made = _Parser(
        prog=PROGRAM,
        description="The same script on every core, every machine: torchrun's options, and a few more.",
        parents=[get_args_parser()],
        add_help=False,
        allow_abbrev=False,
    )
    own = made.add_argument_group("manyhands")
    own.add_argument(
        "--nproc",
        dest="nproc_per_node",
        metavar="N|auto",
        help="processes on each machine; default: 4 without an accelerator, else one on each",
    )
    own.add_argument(
        "--hosts", metavar="A,B", help="start on these machines, over ssh; A:4 gives A four processes"
    )
    own.add_argument("--hostfile", metavar="FILE", help="the same, a host a line: A, A:4 or `A slots=4`")
    own.add_argument("--ssh", metavar="COMMAND", default="ssh", help="how to reach them; default: ssh")
    own.add_argument(
        "--remote-python",
        "--remote_python",
        metavar="PATH",
        default=sys.executable,
        help="the Python with manyhands on those machines; default: the path of this one",
    )
    cluster = made.add_argument_group("a cluster's machines in the place of --hosts")
    cluster.add_argument("--on", choices=ENGINES, help="the engine that has them")
    cluster.add_argument("--count", type=int, metavar="N", help="how many of them; default: all")
    cluster.add_argument("--address", metavar="A", help="where the cluster is; default: this machine's")
    for action in made._actions:
        # torchrun's actions have read the environment by now: what it set stays.
        if action.dest in _OWN_DEFAULTS and f"PET_{action.dest.upper()}" not in os.environ:
            action.default = None
    return made


def parse(arguments: Sequence[str]) -> Order:
    """Understand a command line. UsageError naming what is wrong; SystemExit(0) after --help."""
    given = parser().parse_args(list(arguments))
    return build(given, arguments)


def build(given: argparse.Namespace, arguments: Sequence[str]) -> Order:
    """The order of a parsed command line, checked."""
    least, most = parse_nodes(given.nnodes)
    hosts = _hosts(given)
    if hosts:
        _check_alone(
            given, ("nnodes", "node_rank", "master_addr", "standalone", "rdzv_backend", "rdzv_endpoint")
        )
        least = most = len(hosts)
    elif given.rdzv_backend is None and not given.standalone and least == most:
        check_node_rank(given.node_rank, most)
    if given.max_restarts < 0:
        raise UsageError(f"--max-restarts {given.max_restarts}: give 0 or more")
    if given.master_port is not None and not 0 < given.master_port < 65536:
        raise UsageError(f"--master-port {given.master_port}: give a port from 1 to 65535")
    if given.count is not None or given.address is not None:
        raise UsageError("--count and --address are about a cluster: say which engine has it, --on ray")
    if given.module and given.no_python:
        raise UsageError("--module and --no-python exclude each other")
    return Order(given, least, most, hosts, given.ssh, given.remote_python, tuple(arguments))


def _hosts(given: argparse.Namespace) -> tuple[Host, ...]:
    if given.hosts and given.hostfile:
        raise UsageError("--hosts and --hostfile exclude each other")
    if given.hosts:
        return parse_hosts(given.hosts)
    if given.hostfile:
        try:
            text = Path(given.hostfile).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--hostfile {given.hostfile} cannot be read: {error}") from None
        return parse_hostfile(text, given.hostfile)
    return ()


def _check_alone(given: argparse.Namespace, names: Sequence[str]) -> None:
    """UsageError where an option contradicts --hosts."""
    usual: dict[str, Any] = {"nnodes": "1:1", "node_rank": 0}
    for name in names:
        if getattr(given, name) not in (None, False, "", usual.get(name)):
            raise UsageError(f"--hosts says which machines there are: leave out --{name.replace('_', '-')}")
