"""A function of a notebook's cell on many processes."""

from __future__ import annotations

import threading

import pytest
from launching import Launcher

from manyhands.errors import RunFailed, UsageError
from manyhands.launch import notebook


def test_a_function_of_a_cell_travels_with_what_it_uses(
    launch: Launcher, capfd: pytest.CaptureFixture[str]
) -> None:
    factor = 10

    def scale(number: int) -> int:
        return factor * number

    def train(offset: int) -> int:
        import os

        rank = int(os.environ["RANK"])
        print("rank", rank)  # noqa: T201 - what the test looks for
        return scale(rank) + offset

    assert notebook(train, 2, 5) == [5, 15]
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] rank 0", "[1] rank 1"]


@pytest.mark.slow
def test_ranks_of_a_notebook_have_a_session(launch: Launcher) -> None:
    def train() -> float:
        import manyhands.launch

        s = manyhands.launch.session()
        return s.sum(s.rank + 1.0)

    assert notebook(train, 2) == [3.0, 3.0]


def test_the_error_of_a_rank_is_the_cells(launch: Launcher) -> None:
    def fail() -> None:
        import os

        if os.environ["RANK"] == "1":
            raise KeyError("boom")

    with pytest.raises(RunFailed, match=r"rank 1 failed first, with exit code 1(?s:.*)KeyError: 'boom'$"):
        notebook(fail, 2)


def test_what_cannot_travel_is_said(launch: Launcher) -> None:
    lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        notebook(lambda: lock.acquire(), 1)
