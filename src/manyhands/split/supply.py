"""The data of a loader: how the batches of each phase are made, and the terms of the jobs that it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from manyhands.errors import UsageError
from manyhands.settings import checks
from manyhands.settings.defaults import default, settled
from manyhands.split.data import dataset_length, is_stream, open_dataset, split_dataset
from manyhands.split.fingerprint import fingerprint
from manyhands.split.jobs import Mode, Phase
from manyhands.split.messages import MAX_BATCH_SAMPLES
from manyhands.split.narrow import check_transfer_dtype
from manyhands.split.recipe import PreprocessingFn, Recipe
from manyhands.split.terms import Terms
from manyhands.training.stopping import early_stopping as early_stopping_rule

DEFAULT_BATCH_SIZE: Final = 64

Prepare = Mapping[Phase, PreprocessingFn]


@dataclass(frozen=True)
class Supply:
    """What `CPULoader.setup_dataset` was told; empty before."""

    recipes: Mapping[Phase, Recipe] = field(default_factory=dict)
    batch_size: int = DEFAULT_BATCH_SIZE
    shuffle: bool = False
    prepare: Prepare = field(default_factory=dict)
    whole: Recipe | None = None
    """Of all that was given, before a part was kept back for validation; without a `preprocessing_fn`."""

    @classmethod
    def of(
        cls,
        dataset: Any,
        batch_size: int,
        shuffle: bool,
        preprocessing_fn: PreprocessingFn | Mapping[str, PreprocessingFn] | None,
        val_split: float,
        val_dataset: Any,
        transfer_dtype: str | None,
        collate_fn: Callable[[list[Any]], Any] | None,
        seed: int,
    ) -> Supply:
        """See `CPULoader.setup_dataset`, whose arguments these are."""
        checks.whole("batch_size", batch_size, 1, MAX_BATCH_SAMPLES)
        checks.whole("seed", seed, -(1 << 62), 1 << 62)
        checks.callables(collate_fn=collate_fn)
        check_transfer_dtype(transfer_dtype)
        prepare = _by_phase(preprocessing_fn)
        given = open_dataset(dataset)
        if val_split and val_dataset is not None:
            raise UsageError("give val_split or val_dataset, not both")
        sets: dict[Phase, Any] = {"train": given}
        if val_split:
            sets["train"], sets["val"] = split_dataset(given, val_split, seed)
        elif val_dataset is not None:
            sets["val"] = open_dataset(val_dataset, "val_dataset")
        recipes = {
            phase: Recipe(data, seed, collate_fn, prepare.get(phase), transfer_dtype)
            for phase, data in sets.items()
        }
        whole = Recipe(given, seed, collate_fn, None, transfer_dtype)
        return cls(recipes, batch_size, bool(shuffle), prepare, whole)

    def training(
        self, epochs: int, early_stopping: dict[str, Any] | None
    ) -> tuple[Mapping[Phase, Recipe], Terms]:
        """The recipes and the terms of a training job. UsageError where nothing was set up."""
        recipes = self.recipes
        if not recipes:
            raise _nothing()
        checks.whole("epochs", epochs, 1)
        early_stopping_rule(early_stopping)
        if early_stopping is not None and "val" not in recipes:
            raise UsageError(
                "early_stopping needs validation data: give setup_dataset val_split or val_dataset"
            )
        shuffle = self.shuffle and not is_stream(recipes["train"].dataset)
        return recipes, self.terms(
            "training", recipes, shuffle=shuffle, epochs=epochs, early_stopping=early_stopping
        )

    def recipe(self, phase: Phase, given: Any, name: str) -> Recipe:
        """The recipe of a job of one phase: of `given`, else of what was set up for it."""
        if given is not None:
            return self._like(phase, open_dataset(given, name))
        if self.whole is None:
            raise _nothing()
        return self.recipes.get(phase) or self._like(phase, self.whole.dataset)

    def terms(
        self, mode: Mode, recipes: Mapping[Phase, Recipe], batch_size: int | None = None, **more: Any
    ) -> Terms:
        """The terms of a job of these recipes, and `more`; a `batch_size` of None is that of the supply."""
        size = self.batch_size if batch_size is None else batch_size
        checks.whole("batch_size", size, 1, MAX_BATCH_SAMPLES)
        lengths = {phase: dataset_length(recipe.dataset, phase) for phase, recipe in recipes.items()}
        seed = next(iter(recipes.values())).seed
        return Terms(mode, lengths, size, seed=seed, fingerprint=fingerprint(recipes), **more)

    def _like(self, phase: Phase, dataset: Any) -> Recipe:
        """`dataset` made as the one that was set up is."""
        whole = self.whole
        if whole is None:
            return Recipe(dataset, transfer_dtype=settled(default("data.transfer_dtype")))
        return Recipe(dataset, whole.seed, whole.collate_fn, self.prepare.get(phase), whole.transfer_dtype)


def _nothing() -> UsageError:
    return UsageError("this loader has no data: call setup_dataset(dataset) first")


def _by_phase(given: PreprocessingFn | Mapping[str, PreprocessingFn] | None) -> Prepare:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        checks.callables(preprocessing_fn=given)
        return {"train": given}
    strangers = sorted(set(given) - set(get_args(Phase)))
    if strangers:
        raise UsageError(f"preprocessing_fn has {strangers}: its phases are {', '.join(get_args(Phase))}")
    checks.callables(**{f"preprocessing_fn[{phase!r}]": function for phase, function in given.items()})
    return {phase: given[phase] for phase in get_args(Phase) if phase in given}
