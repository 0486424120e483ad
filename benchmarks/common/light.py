"""Light nodes: they join, answer the probe and deliver zeros at once, so that a coordinator is all that works.

They speak the node's own messages over the node's own TLS and options, but on one event loop for many of them:
a node's threads would cost this machine more than the coordinator that is measured. For two cores or fewer.
"""

from __future__ import annotations

import asyncio
import json
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import grpc

from common.cast import prepare_process
from common.task import Task
from manyhands.fleet import messages as m
from manyhands.fleet import tree
from manyhands.training.gradients import GradientLayout
from manyhands.training.state import ModelState
from manyhands.wire import Invite, NodeKey, Role, dial, tls
from manyhands.wire.certificates import COORDINATOR_NAME
from manyhands.wire.envelope import pack, unpack
from manyhands.wire.known import known_invite
from manyhands.wire.limits import PROTOCOL, STREAM, VERSION_KEY, Limits, client_options
from manyhands.wire.proxy import route_to


def wide_invite(folder: Path, port: int, uses: int) -> str:
    """An invite of the coordinator on `port` for so many nodes, asked for as its owner."""
    owner = known_invite(folder, port, Role.OWNER)
    assert owner is not None
    with dial(owner) as connection:
        reply = connection.ask(m.encode_question(m.AskInvite(uses, 24.0, "node")))
    return str(json.loads(reply)["invite"])


class Door:
    """What all light nodes of a process have in common: where to dial, what they say they hold."""

    def __init__(self, line: str, task: Task) -> None:
        self.invite = Invite.parse(line)
        self.route = route_to(self.invite.host, self.invite.port)
        self.server_pem = tls.fetch_certificate(self.route.connect, self.invite, 10.0)
        state = ModelState(task.model())
        gradients = GradientLayout.of(state, {})
        self.body = bytes(gradients.layout.num_bytes)
        self.present = gradients.everyone.to_bytes((len(gradients.parameters) + 7) // 8, "little")
        rows = [(s.name, str(s.dtype).removeprefix("torch."), s.shape) for s in state.layout().specs]
        self.hello = m.Hello(
            protocol=m.PROTOCOL,
            release="benchmark",
            name="light",
            device="cpu",
            cores=1,
            manual=False,
            model=rows,
            trainable=list(state.trainable),
            criterion=None,
            dataset_length=len(task.dataset()),
        )


class LightNode:
    """One connection; `join` first, then `work` for as long as it lives."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._granted: list[m.Granted] = []
        self.leases = self.sent_bytes = self.received_bytes = 0
        self._channel: grpc.aio.Channel
        self._call: Any

    async def join(self) -> None:
        """Connect with a key of its own, say hello, answer the probe."""
        door = self._door
        credentials = tls.channel_credentials(door.invite, NodeKey.temporary(), door.server_pem)
        options = [
            *client_options(Limits()),
            *door.route.options,
            ("grpc.ssl_target_name_override", COORDINATOR_NAME),
        ]
        target = f"{door.invite.host}:{door.invite.port}"
        self._channel = grpc.aio.secure_channel(target, credentials, options)
        self._call = self._channel.stream_stream(STREAM)(metadata=((VERSION_KEY, str(PROTOCOL)),))
        await self._call.write(pack(m.encode(door.hello)))
        while not any(isinstance(message, m.Probe) for message in await self._read()):
            pass
        await self._call.write(pack(m.encode(m.Probed({}, "light"))))

    async def work(self) -> None:
        """Answer each lease at once, until the run is over."""
        while True:
            messages = await self._read()
            if any(isinstance(message, m.Finished) for message in messages):
                await self._channel.close()
                return
            for granted in messages:
                if isinstance(granted, m.Granted):
                    self.leases += 1
                    for subtree in granted.subtrees:
                        await self._deliver(granted, subtree)

    async def leave(self) -> None:
        """Say goodbye, and wait until the coordinator has closed the stream."""
        await self._call.write(pack(m.encode(m.Leaving("done"))))
        while await self._call.read() is not grpc.aio.EOF:
            pass
        await self._channel.close()

    async def _read(self) -> list[m.FromCoordinator]:
        data = await self._call.read()
        if data is grpc.aio.EOF:
            raise RuntimeError(f"the coordinator ended the stream: {await self._call.details()}")
        self.received_bytes += len(data)
        envelope = unpack(data)
        return m.decode_from_coordinator(envelope.control) if envelope.control else []

    async def _deliver(self, granted: m.Granted, subtree: int) -> None:
        body = self._door.body
        leaves = [leaf for leaf in tree.span(subtree, granted.depth) if leaf < granted.num_leaves]
        done = [m.LeafDone(leaf, 1.0, 0.001) for leaf in leaves]
        message = m.Delivered(
            lease=granted.lease,
            incarnation=granted.incarnation,
            step=granted.step,
            subtree=subtree,
            transfer=granted.lease & 0x7FFFFFFF,
            num_bytes=len(body),
            present=self._door.present,
            leaves=done,
        )
        data = pack(m.encode(message), transfer=message.transfer, offset=0, payload=body)
        self.sent_bytes += len(data)
        await self._call.write(data)


class Hall:
    """Many light nodes in one process, told what to do through its pipe."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._nodes: list[LightNode] = []
        self._work: list[asyncio.Task[None]] = []

    async def join(self, count: int) -> None:
        """Let so many more nodes in, one after the other."""
        for _ in range(count):
            node = LightNode(self._door)
            await node.join()
            self._nodes.append(node)

    async def work(self) -> None:
        """Let all nodes answer leases from now on."""
        self._work = [asyncio.create_task(node.work()) for node in self._nodes]

    async def traffic(self) -> tuple[int, int, int]:
        """Leases so far, bytes received and bytes sent."""
        nodes = self._nodes
        return (
            sum(node.leases for node in nodes),
            sum(node.received_bytes for node in nodes),
            sum(node.sent_bytes for node in nodes),
        )

    async def cycle(self, count: int, at_once: int) -> None:
        """So many nodes that come and go, a few at a time."""

        async def come_and_go() -> None:
            node = LightNode(self._door)
            await node.join()
            await node.leave()

        for _ in range(count // at_once):
            await asyncio.gather(*[come_and_go() for _ in range(at_once)])

    async def leave(self) -> None:
        """All nodes say goodbye."""
        await asyncio.gather(*[node.leave() for node in self._nodes])
        self._nodes.clear()

    async def end(self) -> None:
        """Wait for the working nodes: the run's end is theirs."""
        await asyncio.gather(*self._work)


def run_hall(pipe: Pipe, folder: str, line: str, task: Task) -> None:
    """A process of light nodes. A word is a method of Hall with its arguments; after `end` it exits."""
    prepare_process(folder)
    door = Door(line, task)

    async def obey() -> None:
        hall, word = Hall(door), ""
        while word != "end":
            word, *arguments = await asyncio.to_thread(pipe.recv)
            pipe.send(await getattr(hall, word)(*arguments))

    asyncio.run(obey())
