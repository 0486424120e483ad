"""Who failed first: by its first sign, not by its death; never for a peer that is gone, never when we stopped it."""

from __future__ import annotations

from manyhands.launch.blame import Failure, Witness, describe, exit_code, judge

PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:{port}. GLHF!"


def traceback_of(last: str) -> str:
    return f'Traceback (most recent call last):\n  File "train.py", line 8, in <module>\n    step()\n{last}'


def followed(rank: int, at: float) -> Failure:
    return Failure(rank, 1, at, traceback=traceback_of(PEER.format(port=1000 + rank)))


def test_an_error_of_its_own_is_the_cause_though_peers_died_before() -> None:
    root = Failure(2, 7, 10.5)
    verdict = judge([followed(0, 10.1), followed(1, 10.2), root])
    assert verdict.root is root
    assert verdict.exit_code == 7
    assert [failure.rank for failure in verdict.followed] == [0, 1]


def test_of_two_errors_of_their_own_the_earlier_sign_counts() -> None:
    early = Failure(1, 1, 3.0, traceback=traceback_of("ValueError: boom"))
    late = Failure(0, 1, 4.0, traceback=traceback_of("KeyError: 'x'"))
    assert judge([late, early]).root is early


def test_a_library_that_aborts_is_blamed_where_nobody_else_can_be() -> None:
    aborted, killed = Failure(0, -6, 1.0), Failure(1, -9, 1.1)
    assert judge([aborted, killed]).root is killed
    assert judge([aborted, followed(1, 0.9)]).root is aborted


def test_a_rank_that_was_stopped_is_not_blamed() -> None:
    stopped = Failure(0, -15, 1.0, was_stopped=True)
    killed = Failure(1, -9, 2.0)
    verdict = judge([stopped, killed])
    assert verdict.root is killed
    assert verdict.exit_code == exit_code(-9) == 137
    assert verdict.stopped == (stopped,)


def test_where_all_blame_a_peer_the_first_is_told() -> None:
    assert judge([followed(1, 2.0), followed(0, 3.0)]).root.rank == 1


def test_one_that_ended_well_while_all_others_waited_for_it_is_named() -> None:
    early, waiting = (
        Failure(2, 0, 9.0),
        followed(0, 8.5),
    )  # leaving takes longer than seeing that a peer leaves
    verdict = judge([waiting, followed(1, 10.2), early, Failure(3, -15, 11.0, was_stopped=True)])
    assert verdict.root is early
    assert verdict.exit_code == 1
    lines = describe(verdict).splitlines()
    assert lines[0] == "manyhands: rank 2 ended first, with exit code 0, while others waited for it"
    assert lines[1].startswith("  ranks 0-1 followed: RuntimeError: [gloo")
    assert "\n".join(lines[3:]) == waiting.traceback  # where they waited


def test_one_that_ended_well_is_not_blamed_for_the_error_of_another() -> None:
    own = Failure(1, 3, 10.0)
    verdict = judge([Failure(0, 0, 9.0), own, followed(2, 9.5)])
    assert verdict.root is own
    assert [failure.rank for failure in verdict.followed] == [2]


def test_the_end_folds_the_consequences_and_has_the_traceback_last() -> None:
    root = Failure(2, 1, 1.0, host="beta", traceback=traceback_of("ValueError: boom\n  with a second line"))
    said = describe(judge([followed(0, 1.1), followed(1, 1.2), root, Failure(3, -15, 2.0, was_stopped=True)]))
    lines = said.splitlines()
    assert lines[0] == "manyhands: rank 2 on beta failed first, with exit code 1"
    assert lines[1].startswith("  ranks 0-1 followed: RuntimeError: [gloo")
    assert lines[2] == "  rank 3 stopped by the launcher"
    assert "\n".join(lines[3:]) == root.traceback


def hear(witness: Witness, text: str, now: float = 0.0) -> list[str]:
    return [shown for line in text.splitlines() for shown in witness.hear(line, now)]


def test_last_words_are_held_back() -> None:
    witness = Witness(hold_seconds=1.0)
    assert hear(witness, "loading") == ["loading"]
    assert hear(witness, traceback_of("ValueError: boom"), 5.0) == []
    assert witness.overdue(5.9) == []
    assert witness.at == 5.0
    assert witness.holds_last_words
    assert witness.traceback == traceback_of("ValueError: boom")


def test_a_traceback_that_the_rank_survived_is_shown() -> None:
    witness = Witness(hold_seconds=1.0)
    hear(witness, traceback_of("ValueError: caught"), 5.0)
    assert witness.overdue(6.0) == traceback_of("ValueError: caught").splitlines()
    assert hear(witness, "going on", 6.1) == ["going on"]
    assert not witness.holds_last_words


def test_a_chain_is_one_traceback_and_its_last_exception_counts() -> None:
    chain = (
        traceback_of("KeyError: 'x'")
        + "\n\nDuring handling of the above exception, another exception occurred:\n\n"
        + traceback_of("ValueError: boom")
    )
    witness = Witness()
    hear(witness, chain)
    assert witness.traceback == chain
    assert Failure(0, 1, 0.0, traceback=witness.traceback).last_line == "ValueError: boom"


def test_what_the_library_logs_after_the_exception_is_not_part_of_it() -> None:
    witness = Witness()
    hear(witness, traceback_of("ValueError: boom") + "\n[W1121 10:00:00.1 ProcessGroup.cpp:67] not destroyed")
    assert witness.traceback == traceback_of("ValueError: boom")
