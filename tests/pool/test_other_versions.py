"""A node whose hello is of another version: told both numbers, and which side to upgrade."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.errors import Mismatch
from manyhands.fleet import messages as m
from manyhands.pool.server import CentralServer
from manyhands.wire import dial
from manyhands.wire.envelope import pack
from manyhands.wire.invite import Invite


@pytest.mark.parametrize(("protocol", "older"), [(0, "this node"), (m.PROTOCOL + 1, "the coordinator")])
def test_a_hello_of_another_version_is_refused(tmp_path: Path, protocol: int, older: str) -> None:
    data = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    server = CentralServer(nn.Linear(2, 2), data, batch_size=4, port=0, checkpoint_dir=tmp_path)
    server.start(block=False)
    try:
        with dial(Invite.parse(server.invite)) as connection:
            stream = connection.stream()
            hello = m.Hello(protocol, "9.9", "odd", "cpu", 1, False, None, [], None, None)
            stream.send(pack(m.encode(hello)))
            with pytest.raises(
                Mismatch, match=rf"protocol {m.PROTOCOL} and .* {protocol} .* upgrade {older}"
            ):
                list(stream)
    finally:
        server.stop()
        server.wait()
