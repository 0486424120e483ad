"""Machines that cannot take part as they are: each hears why, in one sentence, and ends."""

from __future__ import annotations

import shutil

from lent import ENDLESS, coordinator, join, wait_steps

from manyhands.wire import NodeKey, known_invite


def test_two_machines_with_one_key_cannot_both_stay(tmp_path):
    first_state, second_state = tmp_path / "first", tmp_path / "second"
    NodeKey.claim(first_state / "keys").release()
    shutil.copytree(first_state, second_state)
    with coordinator(**ENDLESS) as cluster:
        line = str(known_invite(cluster.state_dir, cluster.port))
        with join(state=first_state, folder=tmp_path / "a", MANYHANDS_INVITE=line) as first:
            wait_steps(cluster)
            with join(state=second_state, folder=tmp_path / "b", MANYHANDS_INVITE=line) as second:
                assert first.ends() == 4
                assert "replaced by a newer connection of the same node" in first.errors
                assert "copies of one state folder" in first.errors
                wait_steps(cluster)
                assert second.process.poll() is None


def test_a_device_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    with (
        coordinator() as cluster,
        join("--device", "cuda:7", state=cluster.state_dir, folder=tmp_path / "a") as joined,
    ):
        assert joined.ends() == 2
        assert "device='cuda:7' does not work here" in joined.errors
        assert "this machine has cpu" in joined.errors
        assert "Traceback" not in joined.errors
