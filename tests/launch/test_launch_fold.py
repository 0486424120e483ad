"""Lines that ranks print alike become one line, and no rank's own lines change their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manyhands.launch.fold import Fold, name_ranks, tag
from manyhands.launch.splitting import LineSplitter


def test_a_line_of_all_ranks_comes_once_and_at_once() -> None:
    fold = Fold(3, hold_seconds=1.0)
    fold.add(1, "loading", 0.0)
    fold.add(0, "loading", 0.1)
    assert fold.take(0.2) == []
    fold.add(2, "loading", 0.3)
    assert fold.take(0.3) == [([0, 1, 2], "loading")]


def test_a_line_of_some_ranks_waits_only_its_time() -> None:
    fold = Fold(3, hold_seconds=1.0)
    fold.add(0, "rank 0 is first", 0.0)
    assert fold.take(0.9) == []
    assert fold.take(1.0) == [([0], "rank 0 is first")]


def test_a_line_said_twice_is_shown_twice() -> None:
    fold = Fold(2, hold_seconds=1.0)
    for _ in range(2):
        fold.add(0, "step", 0.0)
    fold.add(1, "step", 0.0)
    assert fold.flush() == [([0, 1], "step"), ([0], "step")]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc")), max_size=40))
def test_each_rank_sees_its_own_lines_in_order(said: list[tuple[int, str]]) -> None:
    fold = Fold(3, hold_seconds=3.0)
    shown = []
    for now, (rank, text) in enumerate(said):
        fold.add(rank, text, float(now))
        shown += fold.take(float(now))
    shown += fold.flush()
    for rank in range(3):
        assert [text for ranks, text in shown if rank in ranks] == [text for who, text in said if who == rank]


def test_tags_name_ranks_shortly_and_their_hosts() -> None:
    assert name_ranks([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert tag([0, 1, 3], {}) == "[0-1,3]"
    assert tag([0, 1, 2], {0: "alpha", 1: "alpha", 2: "beta"}) == "[alpha:0-1 beta:2]"


def test_bytes_become_lines_however_they_are_cut() -> None:
    content = "zwölf\r\nsteps\nrest".encode()
    for cut in range(len(content)):
        splitter = LineSplitter()
        lines = [*splitter.feed(content[:cut]), *splitter.feed(content[cut:]), *splitter.end()]
        assert lines == ["zwölf", "steps", "rest"]


def test_of_a_bar_that_writes_over_itself_the_last_state_is_a_line() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"\r 10%\r 20%") == []
    assert splitter.feed(b"\r100%\n") == ["100%"]


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    splitter = LineSplitter()
    assert sum(len(line) for line in splitter.feed(b"x" * 200_000)) == 200_000
