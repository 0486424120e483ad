"""Checkpoints on a real disk: always a whole one, whatever tears, fills or kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model

from manyhands.clock import ManualClock
from manyhands.errors import StorageError, UsageError
from manyhands.store import checkpoint as checkpoint_module
from manyhands.store.checkpoint import Snapshot, check, load, newest, save

torch.set_num_threads(1)
CLOCK = ManualClock(1.5e9)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.norm(self.embed(x)))


def trained(optimizer_class=torch.optim.AdamW, steps: int = 2, **options):
    torch.manual_seed(0)
    model = Tied()
    optimizer = optimizer_class(model.parameters(), lr=0.01, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.arange(8) % 11).sum().backward()
        optimizer.step()
    return model, optimizer


def snapshot(step: int, model=None, optimizer=None, run: str = "run-0001", **manifest) -> Snapshot:
    if model is None:
        model, optimizer = trained(steps=1)
    return Snapshot(run, step, model.state_dict(), optimizer.state_dict(), manifest)


@pytest.mark.parametrize("aliases", [{}, {"head.weight": "embed.weight"}, {"embed.weight": "head.weight"}])
def test_the_model_loads_without_us(tmp_path, aliases):
    model, optimizer = trained()
    tensors = {name: value for name, value in model.state_dict().items() if name not in aliases}
    path = save(tmp_path, Snapshot("run-0001", 2, tensors, optimizer.state_dict(), {}, aliases), CLOCK)
    fresh = Tied()
    load_model(fresh, path / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])
    assert fresh.head.weight is fresh.embed.weight
    assert len(load_file(path / "model.safetensors")) == len(model.state_dict()) - 1
    assert set(load(path).state_dict()) == set(model.state_dict())


def test_an_alias_beats_a_copy_given_under_its_name(tmp_path):
    """A state dict that was deep-copied has the tied tensor twice; the file must not."""
    model, _ = trained()
    copies = {name: value.clone() for name, value in model.state_dict().items()}
    path = save(tmp_path, Snapshot("r", 1, copies, {}, {}, {"head.weight": "embed.weight"}), CLOCK)
    load_model(Tied(), path / "model.safetensors")
    with pytest.raises(UsageError, match="points at 'nothing'"):
        save(tmp_path, Snapshot("r", 2, copies, {}, {}, {"head.weight": "nothing"}), CLOCK)


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.AdamW, {"betas": (0.8, 0.9), "amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_training_goes_on_with_the_same_bits(tmp_path, optimizer_class, options):
    model, optimizer = trained(optimizer_class, **options)
    save(tmp_path, snapshot(2, model, optimizer, epoch=0), CLOCK)
    found = newest(tmp_path)
    assert found is not None
    loaded = load(found)
    other, other_optimizer = Tied(), None
    other.load_state_dict(loaded.state_dict())
    other_optimizer = optimizer_class(other.parameters(), lr=99.0, **options)
    other_optimizer.load_state_dict(loaded.optimizer)
    assert loaded.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    for one, its in ((model, optimizer), (other, other_optimizer)):
        its.zero_grad()
        one(torch.arange(8) % 11).sum().backward()
        its.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_views_of_one_flat_buffer_are_stored_apart(tmp_path):
    flat = torch.arange(12.0)
    parts = {"a": flat[:4].view(2, 2), "b": flat[4:], "c": torch.arange(6.0).view(2, 3).t()}
    path = save(tmp_path, Snapshot("r", 1, parts, {}), CLOCK)
    back = load(path).tensors
    assert all(torch.equal(back[name], value) for name, value in parts.items())


def test_changing_what_was_loaded_leaves_the_file_alone(tmp_path):
    """Loaded tensors may be mapped from the file; training on them must not write through."""
    path = save(tmp_path, Snapshot("r", 1, {"w": torch.ones(5000)}, {"m": torch.ones(5000)}), CLOCK)
    loaded = load(path)
    loaded.tensors["w"].add_(1)
    loaded.optimizer["m"].zero_()
    assert load(path).tensors["w"].sum() == 5000


def test_the_manifest_says_what_it_is(tmp_path):
    path = save(tmp_path, snapshot(7, epoch=3, journal_position=41), CLOCK)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {
        key: manifest[key] for key in ("format", "run", "step", "epoch", "journal_position", "saved_at")
    } == {
        "format": 1,
        "run": "run-0001",
        "step": 7,
        "epoch": 3,
        "journal_position": 41,
        "saved_at": 1.5e9,
    }
    assert manifest["tied"] == {"head.weight": "embed.weight"}
    assert (tmp_path / "run-0001" / "latest").read_text() == "step-7\n"
    assert sorted(manifest["files"]) == ["model.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize(
    "manifest", [{"files": 1}, {"x": float("nan")}, {"x": (1, 2)}, {"x": {1: 2}}, {"x": object()}]
)
def test_a_manifest_that_is_not_plain_is_refused_and_nothing_stays(tmp_path, manifest):
    with pytest.raises(UsageError, match="manifest entry"):
        save(tmp_path, snapshot(1, **manifest), CLOCK)
    assert list((tmp_path / "run-0001").iterdir()) == []


def test_the_newest_three_stay(tmp_path):
    for step in (5, 10, 100, 20, 30):
        save(tmp_path, snapshot(step), CLOCK)
    # 100 went when step 20 was saved: going on from before it voided it.
    assert sorted(path.name for path in (tmp_path / "run-0001").iterdir()) == [
        "latest",
        "step-10",
        "step-20",
        "step-30",
    ]
    save(tmp_path, snapshot(40), CLOCK, keep=1)
    assert sorted(path.name for path in (tmp_path / "run-0001").iterdir()) == ["latest", "step-40"]


def test_the_same_step_twice_is_the_second(tmp_path):
    save(tmp_path, snapshot(5, finished=False), CLOCK)
    path = save(tmp_path, snapshot(5, finished=True), CLOCK)
    assert check(path)["finished"] is True
    assert sorted(path.name for path in path.parent.iterdir()) == ["latest", "step-5"]


def damage_missing(path: Path) -> None:
    (path / "model.safetensors").unlink()


def damage_short(path: Path) -> None:
    os.truncate(path / "optimizer.safetensors", 100)


def damage_bit(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "model.safetensors").write_bytes(data)


def damage_json(path: Path) -> None:
    os.truncate(path / "manifest.json", 50)


def damage_number(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"step": 20', '"step": 21'))


def damage_manifest_gone(path: Path) -> None:
    (path / "manifest.json").unlink()


DAMAGES = {
    damage_missing: "could not read .*model.safetensors",
    damage_short: r"optimizer.safetensors has 100 of [\d,]+ bytes",
    damage_bit: "model.safetensors is damaged",
    damage_json: "manifest.json is torn",
    damage_number: "manifest.json is torn or damaged",
    damage_manifest_gone: "could not read .*manifest.json: No such file",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_one_is_skipped_and_named(tmp_path, damage):
    save(tmp_path, snapshot(10), CLOCK)
    damage(save(tmp_path, snapshot(20), CLOCK))
    found = newest(tmp_path, "run-0001")
    assert found is not None
    assert found.path.name == "step-10"
    (reason,) = found.skipped
    assert reason.startswith(f"skipped {tmp_path}/run-0001/step-20: ")
    with pytest.raises(StorageError, match=DAMAGES[damage]):
        check(tmp_path / "run-0001" / "step-20")
    save(tmp_path, snapshot(20), CLOCK)
    again = newest(tmp_path)
    assert again is not None
    assert (again.path.name, again.skipped) == ("step-20", [])


def test_none_whole_is_an_error_not_a_fresh_start(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path, "run-0001") is None
    damage_json(save(tmp_path, snapshot(20), CLOCK))
    with pytest.raises(StorageError, match=r"no checkpoint in .* is whole .*step-20.*torn"):
        newest(tmp_path)


def test_a_run_without_a_checkpoint_is_passed_over(tmp_path):
    save(tmp_path, snapshot(3), CLOCK)
    (tmp_path / "run-0002").mkdir()
    found = newest(tmp_path)
    assert found is not None
    assert found.path == tmp_path / "run-0001" / "step-3"
    assert found.skipped == [f"{tmp_path}/run-0002 holds no checkpoint"]


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    path = save(tmp_path, snapshot(5), CLOCK)
    path.rename(path.with_name(".old-step-5-999999999"))
    found = newest(tmp_path)
    assert found is not None
    assert found.manifest["step"] == 5
    save(tmp_path, snapshot(6), CLOCK)
    assert sorted(path.name for path in path.parent.iterdir()) == ["latest", "step-6"]


def test_only_dead_writers_leftovers_are_removed(tmp_path):
    run = tmp_path / "run-0001"
    names = (
        ".tmp-step-3-999999999",
        f".tmp-step-3-{os.getppid()}",
        ".tmp-step-3-notours",
        "step-x",
        ".tmp-mine",
    )
    for name in names:
        (run / name).mkdir(parents=True)
    save(tmp_path, snapshot(4), CLOCK)
    assert sorted(path.name for path in run.iterdir()) == sorted([*names[1:], "latest", "step-4"])


def test_a_name_cannot_leave_the_folder(tmp_path):
    for name in ("../x", "a/b", "", ".hidden", "x" * 65):
        with pytest.raises(UsageError, match="no name of a run"):
            save(tmp_path, snapshot(1, run=name), CLOCK)


def test_a_later_format_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr("manyhands.store.manifest.FORMAT", 2)
    path = save(tmp_path, snapshot(1), CLOCK)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="its format is 2"):
        check(path)


def test_a_full_disk_keeps_the_last_good_one(tmp_path):
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        save(disk, Snapshot("r", 1, {"w": torch.ones(50_000)}, {}), CLOCK)
        for tensors, optimizer in (
            ({"w": torch.ones(250_000)}, {}),
            ({"w": torch.ones(1)}, {"m": torch.ones(250_000)}),
        ):
            with pytest.raises(StorageError, match="the disk is full") as caught:
                save(disk, Snapshot("r", 2, tensors, optimizer), CLOCK)
            assert caught.value.path.startswith(str(disk / "r"))
            assert "1,000,000 bytes needed" in str(caught.value)
            assert "free some space" in str(caught.value)
            found = newest(disk)
            assert found is not None
            assert (found.manifest["step"], found.skipped) == (1, [])
            assert sorted(path.name for path in (disk / "r").iterdir()) == ["latest", "step-1"]
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match=r"[Rr]ead-only file system.*choose another folder"):
            save(disk, Snapshot("r", 2, {"w": torch.ones(1)}, {}), CLOCK)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_size_limit_is_named(tmp_path):
    program = """
        import os, resource, sys, torch
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.checkpoint import Snapshot, newest, save
        folder = Path(sys.argv[1])
        save(folder, Snapshot("r", 1, {"w": torch.ones(10)}, {}), SystemClock())
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            save(folder, Snapshot("r", 2, {"w": torch.ones(100_000)}, {}), SystemClock())
        except RuntimeError as error:
            print(type(error).__name__, error)
        found = newest(folder)
        print(found.path.name, found.skipped)
    """
    lines = run_python(program, str(tmp_path)).stdout.splitlines()
    assert lines[0].startswith("StorageError could not write ")
    assert "File too large (400,000 bytes needed" in lines[0]
    assert lines[1] == "step-1 []"


@pytest.mark.parametrize("steps", ["counting", "one"])
def test_killed_at_any_moment_there_is_a_whole_one(tmp_path, steps):
    """Twenty writers, each killed at a random moment of an endless row of saves.

    With one step, each save replaces the only checkpoint there is.
    """
    program = """
        import json, os, random, signal, sys, time, torch
        from pathlib import Path
        from manyhands.clock import SystemClock
        from manyhands.store.checkpoint import Snapshot, load, newest, save
        torch.set_num_threads(1)
        folder, counting, random = Path(sys.argv[1]), sys.argv[2] == "counting", random.Random(7)

        def write_for_ever(first):
            for n in range(first, first + 10**6):
                tensors = {"w": torch.full((20_000,), float(n)), "b": torch.tensor(float(n))}
                snapshot = Snapshot("r", n if counting else 0, tensors, {"m": tensors["w"]}, {"n": n})
                save(folder, snapshot, SystemClock(), keep=3 if counting else 1)
                os.write(told, b".")

        first, report = 0, []
        for _ in range(20):
            heard, told = os.pipe()
            child = os.fork()
            if not child:
                write_for_ever(first)
            os.read(heard, 1)
            began = time.perf_counter()
            os.read(heard, 1)
            time.sleep(random.random() * 2 * (time.perf_counter() - began))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(heard), os.close(told)
            found = newest(folder, "r")
            loaded, n = load(found), found.manifest["n"]
            whole = bool((loaded.tensors["w"] == n).all() and (loaded.optimizer["m"] == n).all())
            report.append([first, n, whole, found.skipped, len(list((folder / "r").glob(".tmp-*")))])
            first = n + 1
        print(json.dumps(report))
    """
    done = run_python(program, str(tmp_path), steps)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == 20
    for first, reached, whole, skipped, _ in report:
        assert reached > first
        assert whole
        assert skipped == []
    assert any(leftovers for *_, leftovers in report), "no writer was killed in the middle of a save"


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(Path(checkpoint_module.__file__).parents[2])},
    )
