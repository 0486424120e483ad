"""Who listens on the line of a whole run learns nothing of it; without TLS, the same ears hear all of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import torch
from captures import Needles, Packets, Relay, closing_all, may_capture
from security_jobs import COLUMN, NODE_NAME, Patients, build, model

from manyhands.pool.node import TrainingNode
from manyhands.wire.invite import Invite


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


class Overheard:
    """One whole run of one node, with everything that a listener may want, and what it got."""

    def __init__(self, folder: Path, *, secure: bool) -> None:
        self.needles = Needles()
        self.server = build(checkpoint_dir=folder, secure=secure, on_step=self._keep_weights)
        self._keep_weights()
        data = Patients()
        self.needles.add("a row of the data", raw(data.rows), step=4)
        self.needles.add("a column's name", COLUMN.encode())
        self.needles.add("the node's name", NODE_NAME.encode())
        for name, _ in self.server.model.named_parameters():
            self.needles.add("a parameter's name", name.encode())

    def _keep_weights(self, **_: Any) -> None:
        for tensor in self.server.model.state_dict().values():
            if tensor.is_floating_point():
                self.needles.add("weights", raw(tensor), step=4)

    def _keep_secrets(self, line: str) -> None:
        invite = Invite.parse(line)
        self.needles.add("the token", line.removeprefix("mh://").partition("@")[0].encode())
        for form in (invite.secret, invite.secret.hex().encode(), base64.b64encode(invite.secret)):
            self.needles.add("the invite's secret", form)

    def run(self) -> dict[str, bytes]:
        """What each listener heard."""
        with closing_all() as opened:
            packets = Packets() if may_capture() else None
            opened += [packets] if packets is not None else []
            self.server.start(block=False)
            port = self.server.address[1]
            line = self.server.invite if self.server.secure else None
            if line is not None:
                self._keep_secrets(line)
            relay = Relay(port)
            opened.append(relay)
            node = TrainingNode(
                model(), ("127.0.0.1", relay.port), secure=self.server.secure, invite=line, name=NODE_NAME
            )
            node.train()
            report = self.server.wait()
        assert report.samples_applied == report.samples_expected == 96
        heard = {"relay": relay.seen()}
        return {**heard, "packets": packets.seen(port, relay.port)} if packets is not None else heard


def test_a_listener_learns_nothing_of_a_run(tmp_path: Path) -> None:
    run = Overheard(tmp_path, secure=True)
    heard = run.run()
    assert set(heard) == ({"relay", "packets"} if may_capture() else {"relay"})
    for ear, captured in heard.items():
        assert len(captured) > 20_000, f"the {ear} heard no run"
        assert run.needles.seen_in(captured) == set(), ear
    assert run.needles.labels >= {"weights", "a row of the data", "the token", "the invite's secret"}


def test_without_tls_the_same_ears_hear_everything(tmp_path: Path) -> None:
    # Else the test above could not fail.
    run = Overheard(tmp_path, secure=False)
    for ear, captured in run.run().items():
        assert run.needles.seen_in(captured) == run.needles.labels, ear
    assert run.needles.labels >= {"weights", "a row of the data", "a parameter's name", "the node's name"}
