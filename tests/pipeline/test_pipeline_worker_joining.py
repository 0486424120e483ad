"""Who comes to a boss, and what it makes of them: the worker's command, strangers, peers that talk nonsense."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from manyhands import Mismatch, ProtocolError, Refused, RunFailed, Unreachable, UsageError
from manyhands.fleet.parcels import pack
from manyhands.pipeline import messages as m
from manyhands.pipeline.bossline import BossLine
from manyhands.pipeline.crew import Crew
from manyhands.wire import ClientStream, Connection, Invite, dial

SECONDS = 30


@pytest.fixture
def boss() -> Iterator[Crew]:
    crew = Crew(1, "127.0.0.1", 0)
    crew.open()
    yield crew
    crew.close()


@pytest.fixture
def connection(boss) -> Iterator[Connection]:
    with dial(Invite.parse(boss.invite), timeout_seconds=SECONDS) as connection:
        yield connection


def hello(boss: Crew) -> m.Hello:
    return m.Hello(m.PROTOCOL, "0", "a\x1b[31mb", 1, "cpu", 1 << 30, boss.invite, ["127.0.0.1", "10.0.0.2"])


def say(stream: ClientStream, message: object) -> None:
    for data in pack(message):  # type: ignore[arg-type]
        stream.send(data)


def the_end_of(stream: ClientStream) -> None:
    """Read until the boss ends the stream."""
    while stream.receive() is not None:
        continue


def test_a_worker_is_known_by_its_hello(boss, connection):
    stream = connection.stream()
    say(stream, hello(boss))
    boss.wait(1, SECONDS)
    (member,) = boss
    assert member.number == 0
    assert member.title == "worker 0 (a__31mb, cpu)"
    port = boss.address[1]
    assert [Invite.parse(line).host for line in member.dials] == ["127.0.0.1", "10.0.0.2"]
    assert all(Invite.parse(line).port == port for line in member.dials)
    stream.close()


@pytest.mark.parametrize(
    "words",
    [
        lambda boss: [m.Answer(0, 1)],
        lambda boss: [hello(boss), hello(boss)],
        lambda boss: [hello(boss), m.Answer(0, 1)],
    ],
)
def test_words_out_of_turn_end_the_stream_that_they_came_on(boss, connection, words):
    stream = connection.stream()
    for word in words(boss):
        say(stream, word)
    with pytest.raises(ProtocolError, match=r"worker spoke before|hello twice"):
        the_end_of(stream)


def test_a_worker_of_another_version_is_told_which(boss, connection):
    stream = connection.stream()
    say(stream, m.Hello(7, "9.9.9", "old", 1, "cpu", 0, boss.invite, []))
    with pytest.raises(Mismatch, match=r"protocol 1, .*and this worker 7 \(manyhands 9\.9\.9\)"):
        the_end_of(stream)
    assert len(boss) == 0


def test_bytes_that_mean_nothing_end_the_stream_that_they_came_on(boss, connection):
    stream = connection.stream()
    stream.send(os.urandom(100))
    with pytest.raises(ProtocolError):
        the_end_of(stream)
    with dial(Invite.parse(boss.invite), timeout_seconds=SECONDS) as other:
        say(other.stream(), hello(boss))
        boss.wait(1, SECONDS)


def test_a_boss_that_waits_in_vain_says_for_whom_and_where(boss, capsys):
    with pytest.raises(Unreachable, match=r"0 of 2 workers came within 0\.5 s: .*127\.0\.0\.1:"):
        boss.wait(2, 0.5)
    assert "waiting for 2 of 2 workers: run `manyhands worker" in capsys.readouterr().err


def test_a_boss_that_is_closed_waits_no_longer(boss):
    ends: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def wait() -> None:
        try:
            boss.wait(1, None)
        except RunFailed as error:
            ends.put(error)

    threading.Thread(target=wait, daemon=True).start()
    boss.close()
    assert "let its workers go" in str(ends.get(timeout=SECONDS))


def test_the_line_of_another_boss_is_refused(boss):
    other = Crew(1, "127.0.0.1", 0, Invite.parse(boss.invite))
    with pytest.raises(UsageError, match="another boss's"):
        other.open()


def test_the_environment_says_where_the_boss_is(boss, monkeypatch):
    line = BossLine(boss.invite)
    assert line.invite().port == boss.address[1]
    monkeypatch.setenv("MODEL_HOST", "10.1.2.3")
    assert (line.invite().host, line.invite().port) == ("10.1.2.3", boss.address[1])
    monkeypatch.setenv("MODEL_PORT", "1024")
    assert line.invite().port == 1024


def test_a_worker_without_a_line_is_told_where_to_find_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MODEL_PORT", "1025")
    with pytest.raises(Refused, match=r"port 1025; paste the line that the boss prints"):
        BossLine(None).invite()


def test_a_worker_without_a_boss_ends_with_3(tmp_path):
    nowhere = Invite(os.urandom(16), os.urandom(16), "127.0.0.1", 9)
    done = subprocess.run(
        [sys.executable, "-m", "manyhands", "worker", "-", "--patience", "0"],
        input=f"{nowhere}\n",
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "MANYHANDS_STATE_DIR": str(tmp_path)},
    )
    assert done.returncode == 3, done.stderr
    assert "cannot reach 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
