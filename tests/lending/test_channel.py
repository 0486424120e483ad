"""The channel between two processes: what is sent arrives, and what may not be said is refused."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading

import pytest

from manyhands.errors import ProtocolError, UsageError
from manyhands.pool.lending.channel import INLINE_BYTES, RING_BYTES, HungUp, adopt, open_pair
from manyhands.pool.lending.words import FROM_AGENT, FROM_CHILD, Ending, Kind, Pulse, error_of, pack, unpack
from manyhands.wire.envelope import MAX_MESSAGE_BYTES

HEADER = struct.Struct("<IIQ")
NOWHERE = (1 << 64) - 1
ECHO = """
import sys
from manyhands.pool.lending.channel import HungUp, adopt
from manyhands.pool.lending.words import FROM_AGENT, Kind
channel = adopt([int(number) for number in sys.argv[1:]], FROM_AGENT)
try:
    while True:
        channel.send(Kind.MESSAGE, channel.receive()[1])
except HungUp:
    pass
"""


@pytest.fixture
def ends():
    agent, descriptors = open_pair(FROM_CHILD)
    child = adopt(descriptors, FROM_AGENT)
    yield agent, child
    for end in (agent, child):
        end.close()
        end.release()


def test_messages_of_all_sizes_come_back_from_another_process():
    channel, descriptors = open_pair(FROM_CHILD)
    echo = subprocess.Popen([sys.executable, "-c", ECHO, *map(str, descriptors)], pass_fds=descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    sizes = [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 1 << 20, MAX_MESSAGE_BYTES] * 5
    messages = [os.urandom(64) * (size // 64) + b"x" * (size % 64) for size in sizes]
    sending = threading.Thread(target=lambda: [channel.send(Kind.MESSAGE, message) for message in messages])
    sending.start()
    try:
        for message in messages:
            assert channel.receive() == (Kind.MESSAGE, message)
    finally:
        channel.close()
        sending.join()
        assert echo.wait(20) == 0
        channel.release()


def test_a_writer_waits_for_room_and_hears_of_the_end(ends):
    agent, child = ends
    message = bytes(MAX_MESSAGE_BYTES)
    told = []

    def write():
        try:
            for _ in range(100):
                agent.send(Kind.MESSAGE, message)
                told.append("sent")
        except HungUp:
            told.append("hung up")

    writing = threading.Thread(target=write)
    writing.start()
    child.receive()  # so there is at least one; the ring holds three, and the writer waits for the next place
    child.close()
    writing.join(20)
    assert told[-1] == "hung up"
    assert len(told) <= 2 + RING_BYTES // MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER.pack(99, 0, NOWHERE), "kind 99"),
        (HEADER.pack(Kind.OPENED, 0, NOWHERE), "kind 9"),
        (HEADER.pack(Kind.MESSAGE, INLINE_BYTES + 1, NOWHERE), "in the socket"),
        (HEADER.pack(Kind.MESSAGE, (1 << 32) - 1, NOWHERE), "in the socket"),
        (HEADER.pack(Kind.MESSAGE, INLINE_BYTES + 1, RING_BYTES - INLINE_BYTES), "of a memory"),
        (HEADER.pack(Kind.MESSAGE, MAX_MESSAGE_BYTES + 1, 0), "of a memory"),
        (HEADER.pack(Kind.MESSAGE, 1, 0), "of a memory"),
        (HEADER.pack(Kind.MESSAGE, 1 << 20, NOWHERE - 1), "of a memory"),
    ],
)
def test_a_child_that_breaks_the_rules_is_refused(header, says):
    agent, (receives, sends, memory) = open_pair(FROM_CHILD)
    os.close(memory)
    with socket.socket(fileno=receives), socket.socket(fileno=sends) as line:
        line.sendall(header)
        with pytest.raises(ProtocolError, match=says):
            agent.receive()
        agent.close()
        agent.release()


def test_places_that_were_never_taken_cannot_be_given_back():
    agent, (receives, sends, memory) = open_pair(FROM_CHILD)
    os.close(memory)
    with socket.socket(fileno=receives) as line, socket.socket(fileno=sends):
        line.sendall(b"\x01\x01")
        with pytest.raises(ProtocolError, match="2 messages of the shared memory"):
            agent.send(Kind.MESSAGE, bytes(INLINE_BYTES + 1))
        agent.close()
        agent.release()


def test_a_message_that_is_cut_is_the_end(ends):
    agent, child = ends
    agent._lines[0].sendall(HEADER.pack(Kind.MESSAGE, 100, NOWHERE) + b"only this")
    agent.close()
    with pytest.raises(HungUp):
        child.receive()


def test_too_much_is_not_sent(ends):
    with pytest.raises(UsageError, match="pass a channel"):
        ends[0].send(Kind.MESSAGE, bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x80", pack(Ending("x")), b"\x81\xa6leaves\xff", b"\x91" * 100_000],
)
def test_words_are_read_strictly(body):
    with pytest.raises(ProtocolError, match="no Pulse"):
        unpack(body, Pulse)


def test_an_error_comes_over_as_its_class_with_one_clean_line():
    error = error_of(Ending("ProgramRefused", "node 3:\x1b[31m no\nsuch operator"))
    assert type(error).__name__ == "ProgramRefused"
    assert str(error) == "node 3:?[31m no such operator"
    assert error_of(Ending("SystemExit", "1")).exit_code == 5
