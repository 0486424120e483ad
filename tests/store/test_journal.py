"""The ledger on a real disk: durable, exact, and never twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from manyhands.clock import ManualClock
from manyhands.errors import RunFailed, StorageError, UsageError
from manyhands.store import journal as journal_module
from manyhands.store.filesystem import is_network, kind_of
from manyhands.store.journal import Journal
from manyhands.store.ledger import Ledger
from manyhands.store.rows import Commit, Credit, Quarantine, Refusal, Roster, Row


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "run" / "journal.sqlite", ManualClock(1e9))
    journal.open()
    yield journal
    journal.close()


def step_rows(step: int, epoch: int = 0, leaves: int = 4, nodes: int = 2) -> list[Row]:
    shares: list[Row] = [
        Credit(
            step, epoch, leaf, f"{leaf % nodes:064x}", step * leaves + leaf, 8, step * 8 * leaves + leaf * 8
        )
        for leaf in range(leaves)
    ]
    return [*shares, Commit(step, epoch, 8 * leaves, 1.0 / (step + 1), "ab" * 32 if step % 5 == 0 else None)]


def test_it_answers_who_computed_what(journal):
    journal.record(step_rows(0))
    journal.record(step_rows(1))
    journal.record(
        [Quarantine(0, 17, "raised ValueError"), Refusal("stale fence", "n1"), Roster("00", "pc", "joined")]
    )
    first, second = f"{0:064x}", f"{1:064x}"
    assert journal.samples_applied() == 64
    assert journal.credits() == {first: 32, second: 32} == journal.credits(epoch=0)
    assert journal.credits(epoch=1) == {}
    assert journal.who(1) == {0: first, 1: second, 2: first, 3: second}
    assert journal.who_computed(0, 15) == second
    assert journal.who_computed(0, 64) is None
    assert journal.quarantined() == {17}
    assert journal.weights_hashes() == {0: "ab" * 32}
    assert journal.losses() == [(0, 1.0), (1, 0.5)]
    counts = journal.counts()
    assert (counts.steps, counts.credits, counts.refused, counts.nodes, counts.quarantined) == (2, 8, 1, 1, 1)
    assert journal.audit() == []


def test_a_loss_keeps_its_bits_and_nan_survives(journal):
    journal.record([Commit(0, 0, 0, 0.1 + 0.2), Commit(1, 0, 0, float("nan"))])
    losses = journal.losses()
    assert losses[0] == (0, 0.1 + 0.2)
    assert losses[1][1] != losses[1][1]


def test_incarnations_only_grow_across_openings(tmp_path):
    seen = []
    for _ in range(3):
        with Journal(tmp_path / "journal.sqlite", ManualClock()) as journal:
            seen += [journal.begin_incarnation(), journal.begin_incarnation()]
    assert seen == [1, 2, 3, 4, 5, 6]


def test_an_incarnation_is_on_the_disk_before_it_is_used(tmp_path):
    """A fence counter that restarts would let an answer to a dead coordinator through."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.journal import Journal
        journal = Journal(Path(sys.argv[1]), SystemClock())
        journal.open()
        print(journal.begin_incarnation(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    numbers = [run_python(program, str(tmp_path / "journal.sqlite")) for _ in range(3)]
    assert [(done.stdout.strip(), done.returncode) for done in numbers] == [
        (str(number), -signal.SIGKILL) for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("rows_in_between", [False, True])
def test_a_leaf_is_never_credited_twice(journal, rows_in_between):
    journal.record(step_rows(0))
    if rows_in_between:
        journal.flush()
    journal.record([Credit(0, 0, 2, "other", 99, 8, 16)])
    with pytest.raises(RunFailed, match="step 0, leaf 2 is credited already"):
        journal.flush()
    with pytest.raises(RunFailed):
        journal.record(step_rows(1))
    with pytest.raises(RunFailed):
        journal.close()
    with Ledger(journal.path) as ledger:
        assert ledger.samples_applied() == (32 if rows_in_between else 0)


def test_a_step_is_never_committed_twice(journal):
    journal.record([Commit(3, 0, 8, 0.5)])
    journal.record([Commit(3, 0, 8, 0.5)])
    with pytest.raises(RunFailed, match="step 3 is committed already"):
        journal.flush()
    with pytest.raises(RunFailed):
        journal.close()


def test_rows_behind_a_checkpoint_are_voided_and_written_again(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, ManualClock()) as journal:
        journal.begin_incarnation()
        for step in range(4):
            journal.record(step_rows(step))
        position = journal.position()
        for step in range(4, 7):
            journal.record(step_rows(step))
        journal.record([Quarantine(0, 5, "bad"), Refusal("stale", "n")])
    with Journal(path, ManualClock()) as journal:
        assert journal.samples_applied() == 7 * 32
        assert journal.begin_incarnation() == 2
        assert journal.rollback_to(position) == 3 * 5 + 1
        assert journal.samples_applied() == 4 * 32
        assert journal.quarantined() == set()
        for step in range(4, 10):
            journal.record(step_rows(step, nodes=3))
        assert journal.samples_applied() == 10 * 32 == sum(journal.credits().values())
        assert journal.counts().rolled_back == 16
        assert journal.counts().refused == 1
        assert journal.audit() == []
        assert set(journal.who(5).values()) == {f"{node:064x}" for node in range(3)}
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT DISTINCT rolled_back FROM credit ORDER BY 1").fetchall() == [
            (0,),
            (2,),
        ]
    database.close()


def test_a_checkpoint_ahead_of_its_journal_is_refused(journal):
    journal.record(step_rows(0))
    with pytest.raises(StorageError, match=r"belongs to row 99 .* ends at row 5"):
        journal.rollback_to(99)


def test_the_audit_sees_a_leaf_counted_in_two_steps(journal):
    journal.record([Credit(0, 0, 0, "a", 1, 8, 0), Commit(0, 0, 8, 0.1)])
    journal.record([Credit(1, 0, 0, "a", 2, 8, 4), Commit(1, 0, 16, 0.1)])
    found = journal.audit()
    assert "step 1 applied 16 samples, its credits sum to 8" in found
    assert any("the leaf at 0 covers 8 samples, runs into the one at 4" in line for line in found)


def test_many_threads_lose_nothing(journal, monkeypatch):
    """Back-pressure: writers wait while the disk is behind, and memory stays bounded."""
    monkeypatch.setattr(journal_module, "PENDING_ROWS", 200)
    largest = []

    def work(first: int) -> None:
        for step in range(first, first + 300):
            journal.record(step_rows(step))
            largest.append(len(journal._pending))

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.samples_applied() == 900 * 32 == sum(journal.credits().values())
    assert journal.position() == 900 * 5
    assert max(largest) < 200 + 3 * 5


def test_a_step_costs_few_bytes(journal):
    for step in range(2000):
        journal.record(step_rows(step))
    journal.close()
    assert journal.path.stat().st_size / 2000 < 256


def test_a_ledger_is_read_beside_its_writer(journal):
    journal.record(step_rows(0))
    journal.flush()
    with Ledger(journal.path) as ledger:
        assert ledger.samples_applied() == 32
        journal.record(step_rows(1))
        journal.flush()
        assert ledger.samples_applied() == 64
        with pytest.raises(StorageError, match="readonly"):
            ledger._ask("DELETE FROM credit")


def test_only_one_process_has_a_run_open(journal):
    program = """
        import sys
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.journal import Journal
        try:
            Journal(Path(sys.argv[1]), SystemClock()).open()
        except ValueError as error:
            print(error)
    """
    said = run_python(program, str(journal.path)).stdout
    assert f"is open in process {os.getpid()}" in said


def test_a_child_that_outlives_the_coordinator_does_not_hold_the_run(tmp_path):
    """Data workers notice their parent's death seconds later; the next coordinator must not wait for them."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.journal import Journal
        journal = Journal(Path(sys.argv[1]), SystemClock())
        journal.open()
        if not os.fork():
            os.write(1, b"alive")
            os.read(0, 1)
            os._exit(0)
        signal.pause()
    """
    path = tmp_path / "journal.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"alive"
        with pytest.raises(UsageError, match=f"process {process.pid}"):
            Journal(path, ManualClock()).open()
        process.kill()
        process.wait()
        with Journal(path, ManualClock()) as journal:
            assert journal.begin_incarnation() == 1


def test_a_killed_writer_leaves_whole_steps_only(tmp_path):
    program = """
        import os, sys, signal
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.journal import Journal
        from manyhands.store.rows import Commit, Credit
        journal = Journal(Path(sys.argv[1]), SystemClock())
        journal.open()
        journal.begin_incarnation()
        for step in range(3000):
            rows = [Credit(step, 0, leaf, "n", leaf, 8, step * 32 + leaf * 8) for leaf in range(4)]
            journal.record([*rows, Commit(step, 0, 32, 0.5)])
            if step == 1000:
                journal.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(program, str(tmp_path / "journal.sqlite")).returncode == -signal.SIGKILL
    with Journal(tmp_path / "journal.sqlite", ManualClock()) as journal:
        steps = journal.counts().steps
        assert 1001 <= steps <= 3000
        assert journal.samples_applied() == steps * 32
        assert journal.audit() == []
        assert journal.begin_incarnation() == 2


def test_a_full_disk_is_named_and_what_was_durable_stays(tmp_path):
    program = """
        import resource, sys
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.journal import Journal
        from manyhands.store.rows import Commit
        journal = Journal(Path(sys.argv[1]), SystemClock())
        journal.open()
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            for step in range(100_000):
                journal.record([Commit(step, 0, 8, 0.5)])
                if step % 100 == 0:
                    journal.flush()
                    print(step, flush=True)
        except OSError:
            raise
        except RuntimeError as error:
            print(type(error).__name__, error.path, error)
    """
    path = tmp_path / "journal.sqlite"
    lines = run_python(program, str(path)).stdout.splitlines()
    assert lines[-1].startswith(f"StorageError {path} could not write the journal {path}: ")
    assert "free some space" in lines[-1]
    with Journal(path, ManualClock()) as journal:
        assert journal.counts().steps >= int(lines[-2]) + 1


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, ManualClock()) as journal:
        for step in range(200):
            journal.record(step_rows(step))
    data = bytearray(path.read_bytes())
    data[8192:16384] = os.urandom(8192)
    path.write_bytes(data)
    journal = Journal(path, ManualClock())
    with pytest.raises(StorageError, match=r"journal.sqlite") as caught:
        journal.open()
    assert caught.value.path == str(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        journal.open()


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "journal.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StorageError, match="no journal"):
        Journal(path, ManualClock()).open()


def test_a_later_format_is_refused(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, ManualClock()):
        pass
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(StorageError, match=r"format 9.*update manyhands"):
        Journal(path, ManualClock()).open()


def test_a_closed_journal_says_so(journal):
    journal.close()
    with pytest.raises(StorageError, match="not open"):
        journal.record(step_rows(0))
    with pytest.raises(StorageError, match="not open"):
        journal.counts()
    assert journal.samples_applied() == 0
    with pytest.raises(StorageError, match="there is no journal"):
        Ledger(journal.path.with_name("other")).open()


def test_a_network_file_system_gets_no_write_ahead_log(tmp_path, monkeypatch):
    monkeypatch.setattr("manyhands.store.database.filesystem", lambda path: "nfs4")
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, ManualClock())
    note = journal.open()
    assert note is not None
    assert "nfs4" in note
    assert journal.begin_incarnation() == 1
    journal.record(step_rows(0))
    assert journal.samples_applied() == 32
    assert not path.with_name("journal.sqlite-wal").exists()
    journal.close()


def test_the_mount_table_is_read_right():
    table = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "30 22 0:50 / /home rw - nfs4 server:/home rw\n"
        "31 30 0:51 / /home/me/local\\040disk rw shared:1 - xfs /dev/sdb rw\n"
        "32 22 0:52 / /content/drive rw - fuse.drive drive rw\n"
        "a torn line\n"
    )
    assert kind_of(Path("/etc"), table) == "ext4"
    assert kind_of(Path("/home/you/runs"), table) == "nfs4"
    assert kind_of(Path("/home/me/local disk/runs"), table) == "xfs"
    assert kind_of(Path("/homework"), table) == "ext4"
    assert kind_of(Path("/x"), "") == "unknown"
    assert is_network("nfs4")
    assert is_network(kind_of(Path("/content/drive/MyDrive"), table))
    assert not is_network("fuseblk")


def test_reading_a_ledger_loads_no_torch():
    program = "import sys, manyhands.store.journal, manyhands.observe.metrics; print('torch' in sys.modules)"
    assert run_python(program).stdout.strip() == "False"


def test_a_second_open_is_refused(journal):
    with pytest.raises(StorageError, match="open already"):
        journal.open()


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(journal_module.__file__).parents[2])}
