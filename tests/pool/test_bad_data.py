"""An item that cannot be loaded, deep in an epoch: its index is named, and what was committed before it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pool_jobs
import pytest
from pool_nodes import Pool

from manyhands.errors import BadSample
from manyhands.pool.server import CentralServer
from manyhands.store.ledger import Ledger

BAD = 40


class Late(pool_jobs.Rows):
    """Its 41st item cannot be loaded."""

    def __getitem__(self, index: int) -> Any:
        if index == BAD:
            raise OSError("the sector is gone")
        return super().__getitem__(index)


def train(folder: Path, pool: Pool, **options: Any) -> tuple[CentralServer, Any]:
    pool_jobs.GATE.set()
    model, _, given = pool_jobs.build("linear")
    data = pool_jobs.classes(64, Late)
    server = CentralServer(
        model, data, ip="localhost", port=0, checkpoint_dir=folder, shuffle=False, **{**given, **options}
    )
    server.start(block=False)
    (worker,) = pool.take(1)
    worker.tell(job="linear", port=server.address[1])
    return server, worker


def test_a_bad_item_in_the_middle_stops_with_its_index_and_keeps_what_was_done(
    pool: Pool, tmp_path: Path
) -> None:
    server, worker = train(tmp_path, pool)
    with pytest.raises(BadSample, match=r"dataset\[40\] raised OSError: the sector is gone") as caught:
        server.wait()
    assert (caught.value.index, caught.value.exit_code) == (BAD, 5)
    told = worker.hear()
    assert (told["error"], told["code"]) == ("RunFailed", 5)
    assert "dataset[40]" in told["message"]
    assert (tmp_path / "run-0001" / "latest").read_text() == "step-2\n"


def test_quarantined_it_is_in_the_ledger_and_the_rest_is_trained(pool: Pool, tmp_path: Path) -> None:
    server, worker = train(tmp_path, pool, on_bad_sample="quarantine", epochs=2, max_steps=None)
    report = server.wait()
    assert "error" not in worker.hear()
    assert report.samples_applied == 126
    with Ledger(tmp_path / "run-0001" / "journal.sqlite") as ledger:
        assert ledger.quarantined() == {BAD}
        assert ledger.audit() == []
