"""Nodes that are wrong, data that is wrong, callbacks that raise: a clear end, never a hang."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pool_jobs
import pytest
import torch
from pool_nodes import Pool, wait_for_nodes

from manyhands.errors import BadSample, NonFinite, ProtocolError, RunFailed, UsageError
from manyhands.fleet import messages as m
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer
from manyhands.store.ledger import Ledger
from manyhands.tensors.layout import Layout
from manyhands.training.reference import reference
from manyhands.wire import NodeKey, dial
from manyhands.wire.envelope import pack
from manyhands.wire.invite import Invite


def start(folder: Path, job: str, **more: Any) -> CentralServer:
    pool_jobs.GATE.clear()
    model, dataset, options = pool_jobs.build(job)
    server = CentralServer(
        model, dataset, ip="localhost", port=0, checkpoint_dir=folder, **{**options, **more}
    )
    server.start(block=False)
    return server


def go(server: CentralServer, pool: Pool, job: str, nodes: int = 1, **order: Any) -> list[Any]:
    workers = pool.take(nodes)
    for worker in workers:
        worker.tell(job=job, port=server.address[1], **order)
    wait_for_nodes(server, nodes)
    pool_jobs.GATE.set()
    return workers


def alone(job: str) -> str:
    model, dataset, options = pool_jobs.build(job)
    return reference(model, dataset, **options).weights_sha256


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_nan_that_repeats_stops_the_run(pool: Pool, tmp_path: Path, nodes: int) -> None:
    server = start(tmp_path, "nan")
    workers = go(server, pool, "nan", nodes)
    with pytest.raises(NonFinite, match=r"leaf \d of step \d is not finite, computed 2 times"):
        server.wait()
    assert [worker.hear()["error"] for worker in workers] == ["RunFailed"] * nodes


@pytest.mark.parametrize(("job", "skipped"), [("nan", 1), ("overflow", 2)])
def test_a_step_that_is_not_finite_can_be_skipped(pool: Pool, tmp_path: Path, job: str, skipped: int) -> None:
    server = start(tmp_path, job, on_nonfinite="skip_step")
    workers = go(server, pool, job)
    report = server.wait()
    assert report.skipped == skipped
    assert report.samples_applied == report.samples_expected - skipped * (16 if job == "nan" else 8)
    assert "error" not in workers[0].hear()


def test_leaves_whose_sum_overflows_are_nobodys_fault(pool: Pool, tmp_path: Path) -> None:
    # The second node found the leaf finite, and the first was benched; alone, a node waited for ever.
    server = start(tmp_path, "overflow")
    workers = go(server, pool, "overflow", 2)
    with pytest.raises(NonFinite, match="step's sum of weight is not finite, although every micro-batch was"):
        server.wait()
    assert [worker.hear()["error"] for worker in workers] == ["RunFailed"] * 2


def test_a_bad_item_stops_the_run_or_goes_into_the_ledger(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(BadSample, match=r"dataset\[0\] raised OSError: no file for 0"):
        start(tmp_path, "bad")
    server = start(tmp_path, "bad", on_bad_sample="quarantine")
    workers = go(server, pool, "bad")
    report = server.wait()
    workers[0].hear()
    assert report.samples_applied == 46
    with Ledger(next(tmp_path.glob("run-*/journal.sqlite"))) as ledger:
        assert ledger.quarantined() == {0, 5}


def test_a_model_that_differs_is_refused_by_its_first_difference(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "linear")
    (worker,) = pool.take(1)
    worker.tell(job="linear", port=server.address[1], other_model=True)
    told = worker.hear()
    assert (told["error"], told["code"]) == ("Mismatch", 4)
    assert "weight is float32 (3, 8) here and float32 (4, 8) there" in told["message"]
    go(server, pool, "linear")
    assert server.wait().weights_sha256 == alone("linear")
    assert "error" not in worker.hear()


def test_a_node_whose_own_code_fails_hands_its_lease_to_another(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "linear")
    bad, good = pool.take(2)
    bad.tell(job="linear", port=server.address[1], raises=True)
    told = bad.hear()  # it fails in the probe already, before it could take a lease
    assert told["error"] == "ZeroDivisionError"
    good.tell(job="linear", port=server.address[1])
    wait_for_nodes(server, 1)
    pool_jobs.GATE.set()
    assert server.wait().weights_sha256 == alone("linear")
    assert "error" not in good.hear()


def test_a_callback_that_raises_ends_the_run_and_what_is_committed_is_saved(
    pool: Pool, tmp_path: Path
) -> None:
    def on_step(*, step: int, **_: Any) -> None:
        assert server.status()["step"] == step + 1, "status may be asked from a callback"
        if step == 3:
            raise KeyError("mine")

    server = start(tmp_path, "linear", on_step=on_step)
    workers = go(server, pool, "linear")
    with pytest.raises(KeyError, match="mine"):
        server.wait()
    told = workers[0].hear()
    assert told["error"] == "RunFailed"
    assert "KeyError" in told["message"]
    assert (tmp_path / "run-0001" / "latest").read_text().strip() == "step-4"


def test_an_optimizer_that_fails_halfway_leaves_the_checkpoint_before(pool: Pool, tmp_path: Path) -> None:
    # Half-updated weights were saved as the step before them.
    class Fails(torch.optim.SGD):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            Fails.calls += 1
            if Fails.calls == 3:
                raise MemoryError("no room for the state")
            return super().step(closure)

    server = start(tmp_path, "linear", optimizer=lambda params: Fails(params, lr=0.1))
    workers = go(server, pool, "linear")
    with pytest.raises(MemoryError):
        server.wait()
    assert workers[0].hear()["error"] == "RunFailed"
    assert (tmp_path / "run-0001" / "latest").read_text().strip() == "step-0"


def test_stop_is_heard_while_the_data_is_awaited(tmp_path: Path) -> None:
    # The wake-up was cleared after the wait for the data: without nodes the run went on for ever.
    server = start(tmp_path, "linear")
    server.stop()
    pool_jobs.GATE.set()
    report = server.wait()
    assert report.steps == 0


def test_stop_in_the_middle_lets_nodes_go_well_and_the_run_goes_on_later(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "norm", on_step=lambda **told: server.stop() if told["step"] == 4 else None)
    workers = go(server, pool, "norm", 2)
    report = server.wait()
    assert 5 <= report.steps < 20
    assert ["error" in worker.hear() for worker in workers] == [False, False]
    again = start(tmp_path, "norm", resume=True)
    workers = go(again, pool, "norm", 2)
    report = again.wait()
    assert [worker.hear().get("error") for worker in workers] == [None, None]
    assert report.weights_sha256 == alone("norm")
    assert report.samples_applied == 300


# ---- peers that lie; a node made of bytes ----


class Liar:
    """A key with an invite, that says what it likes."""

    def __init__(self, server: CentralServer) -> None:
        self._key = NodeKey.temporary()
        self._connection = dial(Invite.parse(server.invite), key=self._key)
        self.stream = self._connection.stream()

    def say(self, *messages: Any, **body: Any) -> None:
        self.stream.send(pack(m.encode(*messages), **body))

    def join(self, server: CentralServer) -> None:
        specs = Layout.of(server.model.named_parameters()).to_wire()
        rows = [(s.name, s.dtype, s.shape) for s in specs]
        self.say(m.Hello(m.PROTOCOL, "0", "liar", "cpu", 1, False, rows, [r[0] for r in rows], None, None))
        self.say(m.Probed({"device": "cpu"}, "0" * 64))

    def end(self) -> BaseException | None:
        """How the stream ends."""
        try:
            while self.stream.receive() is not None:
                pass
        except Exception as error:  # noqa: BLE001 - what ended it is what is asked
            return error
        return None

    def close(self) -> None:
        self.stream.close()
        self._connection.close()


HUGE = tuple([(1 << 40)] * 65)


@pytest.mark.parametrize(
    "say",
    [
        lambda liar, server: liar.say(m.Probed({}, "0")),
        lambda liar, server: liar.say(
            m.Hello(m.PROTOCOL, "0", "x", "cpu", 1, False, [("w", "float32", HUGE)], [], None, None)
        ),
        lambda liar, server: liar.stream.send(b"no envelope at all, but bytes of some length"),
        lambda liar, server: liar.stream.send(pack(b"\xff\xff\xff")),
        lambda liar, server: (liar.join(server), liar.say(m.Probed({}, "0"))),
        lambda liar, server: (liar.join(server), liar.say(m.Delivered(1, 1, 0, 1, 7, 0, b"", []))),
        lambda liar, server: (liar.join(server), liar.say(m.Delivered(1, 1, 0, 1, 7, 1 << 40, b"", []))),
        lambda liar, server: (
            liar.join(server),
            liar.say(m.Delivered(1, 1, 0, 1, 7, 8, b"", []), transfer=7, payload=b"too-much-of-it"),
        ),
    ],
    ids=["no-hello", "shape", "bytes", "control", "twice", "empty-sum", "huge-sum", "long-chunk"],
)
def test_a_liar_loses_its_stream_and_the_run_goes_on(pool: Pool, tmp_path: Path, say: Any) -> None:
    server = start(tmp_path, "linear")
    liar = Liar(server)
    say(liar, server)
    assert isinstance(liar.end(), ProtocolError)
    liar.close()
    workers = go(server, pool, "linear")
    report = server.wait()
    assert "error" not in workers[0].hear()
    assert report.weights_sha256 == alone("linear")


def test_stale_foreign_and_replayed_answers_are_refused_and_change_nothing(
    pool: Pool, tmp_path: Path
) -> None:
    server = start(tmp_path, "linear")
    liar = Liar(server)
    liar.join(server)
    wait_for_nodes(server, 1)
    body = bytes(sum(-(-p.numel() * 4 // 64) * 64 for p in server.model.parameters()))
    for number, (lease, incarnation, step) in enumerate([(77, 1, 0), (1, 9, 0), (1, 1, 5)], 1):
        said = m.Delivered(lease, incarnation, step, 1, number, len(body), b"\x03", [m.LeafDone(0, 0.0, 0.1)])
        liar.say(said, transfer=number, payload=body)
    liar.say(
        m.Computed(77, 1, m.LeafDone(0, 1e30, 0.0)), m.NotFinite(77, 1, 0, 1, "w"), m.HandedBack(77, "no")
    )
    liar.say(m.Leaving("done lying"))
    assert liar.end() is None
    liar.close()
    assert server.status()["ledger"]["refused"] >= 6
    workers = go(server, pool, "linear")
    report = server.wait()
    workers[0].hear()
    assert report.weights_sha256 == alone("linear")
    assert report.final_loss is not None
    assert report.final_loss < 10


def test_gradients_that_do_not_fit_are_refused_before_they_leave(tmp_path: Path) -> None:
    server = start(tmp_path, "linear", max_steps=1, micro_batches=1)
    pool_jobs.GATE.set()
    model, _, _ = pool_jobs.build("linear")
    node = TrainingNode(model, server.address, collect_metrics=True).connect()
    batch, figures = node.get_batch()
    assert set(figures) >= {"sent_bytes", "received_bytes", "comp_time", "net_time"}
    assert set(batch) == {"batch_id", "inputs", "targets"}
    for gradients, message in [
        ([torch.zeros(2, 2), None], r"gradient of weight is \(2, 2\), the parameter \(3, 8\)"),
        ([torch.zeros(3, 8)], "1 gradients were given for 2 parameters"),
        ({"nope": torch.zeros(1)}, "gradients name 'nope'"),
        ([[1.0], None], "gradient of weight is a list"),
        ([torch.zeros(3, 8).to_sparse(), None], "sparse"),
    ]:
        with pytest.raises(UsageError, match=message):
            node.send_gradients(gradients, batch["batch_id"])
    with pytest.raises(UsageError, match="batch 12345 is not leased"):
        node.send_gradients([], 12345)
    again, _ = node.get_batch()
    assert again["batch_id"] == batch["batch_id"], "one that was not sent comes again"
    node.send_gradients([torch.zeros(3, 8), torch.zeros(3)], again["batch_id"])
    node.close()  # right after sending: the gradient must still arrive
    assert server.wait().steps == 1


def test_a_node_that_joins_while_the_run_ends_is_told(pool: Pool, tmp_path: Path) -> None:
    # Only members heard of the end; a node at the door dialled for the rest of its patience.
    server = start(tmp_path, "linear")
    late = Liar(server)
    heard: list[Any] = []
    specs = [(s.name, s.dtype, s.shape) for s in Layout.of(server.model.named_parameters()).to_wire()]
    late.say(m.Hello(m.PROTOCOL, "0", "late", "cpu", 1, False, specs, [s[0] for s in specs], None, None))
    reader = threading.Thread(target=lambda: heard.append(late.end()))
    reader.start()
    server.stop()
    pool_jobs.GATE.set()
    server.wait()
    reader.join(10)
    late.close()
    assert heard == [None], "a stream that ends well, not one that breaks"


def test_counters_that_differ_between_leaves_stop_the_run(pool: Pool, tmp_path: Path) -> None:
    # The lease machine had moved on when the sums raised, and the step never completed.
    server = start(tmp_path, "counter")
    workers = go(server, pool, "counter", 2)
    with pytest.raises(RunFailed, match="buffer total must be equal in every micro-batch"):
        server.wait()
    assert [worker.hear()["error"] for worker in workers] == ["RunFailed"] * 2
