"""A stand-in for ssh whose other end is an actor on a machine of a Ray cluster.

``python -m manyhands.clusters.rayshell [--address A] --machine NAME=ID:CPUS:GPUS ... [ssh's options] NAME COMMAND``
runs COMMAND on the machine, with its standard input, output and error at this end, and ends with its exit code;
255 where the machine cannot be reached, as ssh does. Whatever ends this process ends the command: its input closes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from manyhands.clusters.rayconnect import bound_to, connect, load_ray
from manyhands.errors import ManyhandsError

_UNREACHED = 255
_CHUNK_BYTES = 1 << 16


class Shell:
    """One command on the actor's machine. `read` blocks until there is something: each stream has a caller."""

    def start(self, command: str) -> None:
        """Start it; its first word is looked up there."""
        self._process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def write(self, data: bytes) -> None:
        """To its standard input; nothing closes it."""
        assert self._process.stdin is not None
        try:
            if data:
                self._process.stdin.write(data)
                self._process.stdin.flush()
            else:
                self._process.stdin.close()
        except BrokenPipeError:  # it has ended; its exit code tells
            return

    def read(self, stream: int) -> bytes:
        """What comes next of its standard output (1) or error (2); nothing at the end."""
        pipe = self._process.stdout if stream == 1 else self._process.stderr
        assert pipe is not None
        return os.read(pipe.fileno(), _CHUNK_BYTES)

    def wait(self) -> int:
        """Its exit code, 128 + n for a signal."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command on one machine; its exit code."""
    given, rest = _parser().parse_known_args(arguments)
    machines = dict(pair.split("=", 1) for pair in given.machine)
    name, command = rest[-2:]
    try:
        ray = load_ray()
        connect(ray, given.address)
        return _run(ray, machines[name], command)
    except (ManyhandsError, KeyError) as error:
        sys.stderr.write(f"{error}\n")
        return _UNREACHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--address")
    parser.add_argument("--machine", action="append", default=[], metavar="NAME=ID:CPUS:GPUS")
    return parser


def _run(ray: Any, machine: str, command: str) -> int:
    node, cpus, gpus = machine.split(":")
    actor = (
        ray.remote(Shell)
        .options(
            num_cpus=int(cpus),
            num_gpus=int(gpus),
            max_concurrency=5,  # each stream has a caller, and so has the end
            scheduling_strategy=bound_to(node),
        )
        .remote()
    )
    try:
        ray.get(actor.start.remote(command))
        threading.Thread(target=_send, args=(ray, actor), name="manyhands-input", daemon=True).start()
        readers = [
            threading.Thread(
                target=_receive, args=(ray, actor, stream, out), name=f"manyhands-output-{stream}"
            )
            for stream, out in ((1, sys.stdout.buffer), (2, sys.stderr.buffer))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return int(ray.get(actor.wait.remote()))
    except ray.exceptions.RayError as error:
        sys.stderr.write(f"the machine is gone: {type(error).__name__}\n")
        return _UNREACHED


def _send(ray: Any, actor: Any) -> None:
    """Pass standard input on, in order, and its end."""
    data = b"."
    while data:
        data = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
        ray.get(actor.write.remote(data))


def _receive(ray: Any, actor: Any, stream: int, out: IO[bytes]) -> None:
    """Pass what comes on, as it comes."""
    try:
        while data := ray.get(actor.read.remote(stream)):
            out.write(data)
            out.flush()
    except ray.exceptions.RayError:  # whoever waits for the exit code says it
        return


if __name__ == "__main__":
    sys.exit(main())
