"""The script of failures, as plain values."""

from __future__ import annotations

import pytest

from manyhands.errors import UsageError
from manyhands.testing.faults import Fault, Script, from_plain, to_plain


@pytest.mark.parametrize(
    "fields",
    [
        {"at": "nowhere"},
        {"at": "sent", "action": "explode"},
        {"at": "computing", "action": "drop"},
        {"at": "half_sent", "action": "duplicate"},
        {"at": "state_half", "action": "drop"},
        {"at": "computed", "action": "wrong"},
        {"at": "hello", "step": 3},
        {"at": "sent", "count": 0},
    ],
)
def test_a_fault_that_could_never_fire_is_refused(fields):
    with pytest.raises(UsageError):
        Fault(**fields)


def test_faults_travel_as_json():
    script = (Fault(at="sent", step=3, action="wrong"), Fault(at="hello"))
    assert from_plain(to_plain(script)) == script


def test_each_fault_is_taken_once_at_its_own_step():
    first, second = Fault(at="granted", step=2), Fault(at="granted", step=2, action="stop")
    script = Script((first, second))
    assert script.take("granted", 1) is None
    assert script.take("sent", 2) is None
    assert script.take("granted", 2) is first
    assert script.take("granted", 2) is second
    assert script.take("granted", 2) is None


def test_count_waits_for_the_nth_moment_of_any_step():
    script = Script((Fault(at="computing", count=3),))
    assert [script.take("computing", step) is not None for step in (1, 1, 2, 2)] == [
        False,
        False,
        True,
        False,
    ]
