"""`RemoteLoader` in loops of other people's: plain, Lightning, the Hugging Face Trainer, Accelerate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from split_loaders import Background
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from manyhands.errors import UsageError
from manyhands.split.loader import CPULoader
from manyhands.split.remote import RemoteLoader
from manyhands.split.twin import seeded

LENGTH, BATCH = 60, 8
X = torch.randn(LENGTH, 4, generator=torch.Generator().manual_seed(1))
Y = (X.sum(1) > 0).long()


class Augmented(TensorDataset):
    """Noise on every sample: the order alone is not enough for the same bits."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.randn(4), y


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))


@contextmanager
def fed(epochs: int, data: Any = None, **setup: Any) -> Iterator[RemoteLoader]:
    """A RemoteLoader with a loader behind it, which has ended well when the block ends."""
    with RemoteLoader(0, device="cpu") as batches:
        loader = CPULoader(num_workers=0)
        loader.setup_dataset(TensorDataset(X, Y) if data is None else data, batch_size=BATCH, **setup)
        feeding = Background(
            lambda: loader.start_loading("127.0.0.1", epochs=epochs, gpu_port=batches.address[1])
        )
        yield batches
    assert feeding.result() == {}


def local(data: Any, epochs: int) -> list[list[Any]]:
    twin = seeded(data, seed=0)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(twin, batch_size=BATCH, shuffle=True, generator=generator)
    passes = []
    for epoch in range(epochs):
        twin.set_epoch(epoch)
        passes.append(list(loader))
    return passes


def equal(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b)
        for mine, yours in zip(ours, theirs, strict=True)
        for a, b in zip(mine, yours, strict=True)
    )


def test_a_plain_loop_sees_what_a_local_dataloader_over_the_twin_gives():
    data = Augmented(X, Y)
    with fed(3, data) as batches:
        assert len(batches) == 8
        assert (batches.epochs, batches.batch_size) == (3, BATCH)
        passes = [list(batches) for _ in range(batches.epochs)]
    assert all(equal(mine, yours) for mine, yours in zip(passes, local(data, 3), strict=True))


def test_a_loop_goes_on_in_the_middle_of_an_epoch():
    data = Augmented(X, Y)
    with fed(3, data) as batches:
        stream = iter(batches)
        first = [next(stream) for _ in range(3)]
        saved = batches.state_dict()
    assert saved == {"epoch": 0, "sequence": 3}
    with fed(3, data) as batches:
        batches.load_state_dict(saved)
        rest, second = list(batches), list(batches)
        batches.set_epoch(0)
        again = list(batches)
    expected = local(data, 2)
    assert equal([*first, *rest], expected[0])
    assert equal(second, expected[1])
    assert equal(again, expected[0])


def test_a_pass_that_is_broken_off_is_followed_by_the_next_epoch():
    with fed(3) as batches:
        assert next(iter(batches)) is not None
        assert equal(list(batches), local(TensorDataset(X, Y), 2)[1])


def test_more_epochs_than_the_loaders_have_are_refused():
    with fed(1) as batches:
        list(batches)
        with pytest.raises(UsageError, match="epoch 1 was asked for, and the loaders gave 1"):
            list(batches)
        with pytest.raises(UsageError, match="no state of a RemoteLoader"):
            batches.load_state_dict({"at": 1})


def test_narrow_inputs_are_themselves_again():
    pictures = TensorDataset(torch.arange(LENGTH * 4).reshape(LENGTH, 4).remainder(256).float(), Y)
    with fed(1, pictures, transfer_dtype="uint8", shuffle=False) as batches:
        assert equal(list(batches), list(DataLoader(pictures, BATCH)))


@pytest.mark.slow
def test_lightning_trains_with_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(4, 2)
                self.seen: list[int] = []

            def training_step(self, batch: Any, number: int) -> Any:
                x, y = batch
                self.seen.append(len(x))
                return nn.functional.cross_entropy(self.net(x), y)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        with fed(2) as batches:
            module = Module()
            lightning.Trainer(
                max_epochs=2,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
            ).fit(module, batches)
    assert sum(module.seen) == 2 * LENGTH


def test_accelerate_leaves_it_as_it_is():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from accelerate import Accelerator

        with fed(1) as batches:
            accelerator = Accelerator(cpu=True)
            net = nn.Linear(4, 2)
            net, optimizer, prepared = accelerator.prepare(
                net, torch.optim.SGD(net.parameters(), 0.1), batches
            )
            seen = 0
            for x, y in prepared:
                accelerator.backward(nn.functional.cross_entropy(net(x), y))
                optimizer.step()
                seen += len(x)
    assert seen == LENGTH


def test_the_hugging_face_trainer_trains_with_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(4, 2)
                self.seen = 0

            def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
                self.seen += len(x)
                return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

        class Rows(TensorDataset):
            def __getitem__(self, index: int) -> Any:
                x, y = super().__getitem__(index)
                return {"x": x, "labels": y}

        with fed(2, Rows(X, Y)) as batches:

            class Remote(Trainer):
                def get_train_dataloader(self) -> Any:
                    return batches

            net = Net()
            arguments = TrainingArguments(
                tmp_path,
                num_train_epochs=2,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            )
            Remote(net, arguments).train()
    assert net.seen == 2 * LENGTH
