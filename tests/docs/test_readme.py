"""The README's story, played on one machine: its own files, its own words, another port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, files

README = ROOT / "README.md"


@pytest.mark.parametrize("helper", ["the line", "node.py"])
def test_two_machines_as_the_readme_has_them(tmp_path, environment, helper):
    written = files(README)
    assert set(written) == {"model.py", "server.py", "node.py"}
    # One machine has no second address and perhaps no free 5555; nothing else of the files is changed.
    server_text = written["server.py"].replace("ip=None, port=5555", 'ip="localhost", port=0')
    assert server_text != written["server.py"]
    for name, text in {**written, "server.py": server_text}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    started = []

    def start(*command: str, folder: Path = tmp_path, **extra: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    try:
        server = start("server.py")
        invite = next(found[0] for line in server.stdout if (found := re.search(r"mh://\S+", line)))
        # Another user's machine finds no file of the coordinator's: only the invite lets it in.
        state = str(tmp_path / "helper")
        if helper == "node.py":
            node = start("node.py", MANYHANDS_INVITE=invite, MANYHANDS_STATE_DIR=state)
        else:  # in a folder without a file of ours
            empty = tmp_path / "empty"
            empty.mkdir()
            node = start("-m", "manyhands", "join", invite, folder=empty, MANYHANDS_STATE_DIR=state)
        report, error = server.communicate(timeout=90)
        assert server.returncode == 0, error
        _, error = node.communicate(timeout=30)
        assert node.returncode == 0, error
    finally:
        for process in started:
            process.kill()
            process.communicate()

    assert "samples_applied=10000, samples_expected=10000" in report
    assert "bit_exact=True" in report
    losses = re.search(r"'train_loss': \[([^]]*)\]", report)[1].split(", ")
    assert float(losses[-1]) < float(losses[0])

    (home,) = [block for block in blocks(README) if block.marker == "run after server.py"]
    hashed = home.text + "from manyhands.training.state import weights_sha256\nprint(weights_sha256(model))\n"
    done = subprocess.run(
        [sys.executable, "-c", hashed],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in report
