"""The two verbs that prove: demo on real digits with a node killed, and verify on a user's server."""

from __future__ import annotations

from pathlib import Path

from commands import JOBS, last_json, run

DEMO_KEYS = {
    "accuracy", "steps", "nodes", "killed", "samples_applied", "samples_expected", "reissued", "bit_identical",
    "weights_sha256", "reference_sha256", "seconds",
}  # fmt: skip


def test_demo_kills_a_node_and_proves_the_bits(tmp_path):
    done = run("demo", "--json", state_dir=tmp_path / "state", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = last_json(done)
    assert set(outcome) == DEMO_KEYS
    assert outcome["bit_identical"] is True
    assert outcome["weights_sha256"] == outcome["reference_sha256"]
    assert (outcome["nodes"], outcome["killed"]) == (3, 1)
    assert outcome["reissued"] >= 1
    assert outcome["samples_applied"] == outcome["samples_expected"] > 0
    assert outcome["accuracy"] >= 0.95
    assert "was killed (SIGKILL)" in done.stderr
    assert "mh://" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_demo_says_what_is_missing(tmp_path):
    """Without scikit-learn the demo names the extra to install, before it starts anything."""
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'sklearn' else find(name, *rest)\n"
    )
    done = run("demo", state_dir=tmp_path / "state", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert 'pip install "manyhands[demo]"' in done.stderr


def test_verify_finds_no_difference_in_a_good_server(tmp_path):
    done = run("verify", f"{JOBS}:build", "--steps", "8", "--json", state_dir=tmp_path / "s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = last_json(done)
    assert outcome["largest_difference"] == 0.0
    assert outcome["first_difference"] is None
    assert (outcome["steps"], outcome["nodes"]) == (8, 2)
    assert outcome["numeric_class"]


def test_verify_names_the_first_tensor_that_differs(tmp_path):
    done = run("-q", "verify", f"{JOBS}:restless", "--nodes", "1", state_dir=tmp_path / "s", cwd=tmp_path)
    assert done.returncode == 5
    assert "0.weight is the first tensor with other bits" in done.stderr
    assert "largest difference" in done.stdout
    assert Path(JOBS).is_file()
