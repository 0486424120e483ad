"""What runs inside a cluster's processes: ``python -m manyhands.testing.child`` as coordinator or node.

Exit codes are the command line's; an error goes to the log with its traceback, and to the cluster as an event.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from manyhands.errors import ManyhandsError
from manyhands.testing.channel import Channel, begin
from manyhands.wire.invite import mask


def main() -> int:
    """Run what the first order says; the process's exit code."""
    channel, order = begin()
    run = _coordinator if order["role"] == "coordinator" else _node
    output, errors = _Masked(sys.stdout), _Masked(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        logging.basicConfig(level=logging.INFO, stream=errors, format="%(name)s: %(message)s")
        try:
            run(channel, order)
        except BaseException as error:  # noqa: BLE001 - the process's edge: the cluster must hear of it
            return _failed(channel, error)
    channel.say("ended")
    return 0


def _failed(channel: Channel, error: BaseException) -> int:
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    else:
        code = error.exit_code if isinstance(error, ManyhandsError) else 1
        traceback.print_exception(error)
    more = {name: getattr(error, name, None) for name in ("index", "path")}
    channel.say("failed", kind=type(error).__name__, text=mask(str(error))[:4000], code=code, **more)
    return code


def _coordinator(channel: Channel, order: dict[str, Any]) -> None:
    import torch

    from manyhands.pool.target import change_options, load_server, make_quiet, watch_steps
    from manyhands.training.seeds import seed_generators

    torch.set_num_threads(order["threads"])
    seed_generators(0)
    server = load_server(order["target"], order["arguments"])
    server.ip, server.port, server.advertise = "127.0.0.1", order["port"], None
    server.hold_for_nodes = order.get("hold_for_nodes", 0)
    server.checkpoint_dir, server.resume = Path(order["folder"]), order["resume"]
    if order["quiet"]:
        make_quiet(server)
    if order["options"]:
        change_options(server, **order["options"])
    watch_steps(server, lambda **figures: channel.say("step", step=figures["step"]))
    channel.watch()
    channel.say("loaded")
    server.start(block=False)
    channel.say("ready", port=server.address[1], secure=server.secure)
    channel.say("report", report=asdict(server.wait()))


def _node(channel: Channel, order: dict[str, Any]) -> None:
    import torch

    from manyhands.testing.faults import from_plain
    from manyhands.testing.faulty import ClusterNode
    from manyhands.training.seeds import seed_generators

    torch.set_num_threads(order["threads"])
    seed_generators(0)
    offer = _offer(order)
    channel.say("loaded")
    where = channel.order()
    channel.watch()
    node = ClusterNode(
        **offer,
        server_address=("127.0.0.1", where["port"]),
        secure=where["secure"],
        name=order["name"],
        device=order["device"],
    )
    node.prepare(from_plain(order["faults"]), channel)
    node.train()


def _offer(order: dict[str, Any]) -> dict[str, Any]:
    """What a node brings: the target's model, or a server's model, criterion and, where nodes read it, data."""
    from torch import nn

    from manyhands.pool.target import as_server, load_object, parts_of

    found = load_object(order["target"], order["arguments"])
    if isinstance(found, nn.Module):
        return {"model": found}
    parts = parts_of(as_server(found, order["target"]))
    dataset = parts.dataset if parts.options.data == "local" else None
    return {"model": parts.model, "criterion": parts.criterion, "dataset": dataset}


class _Masked(io.TextIOBase):
    """A log that keeps no invite, and is written through at once: its process may be killed any moment."""

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def write(self, text: str) -> int:
        self._target.write(mask(text))
        self._target.flush()
        return len(text)

    def flush(self) -> None:
        self._target.flush()


if __name__ == "__main__":
    sys.exit(main())
