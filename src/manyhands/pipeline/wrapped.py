"""A linear layer that takes and publishes skips: the smallest layer with named inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class wrapped_linear(nn.Linear):  # noqa: N801 - a public name that layer lists are written with
    """``linear(x)``, each dependency added in order; the sum is published under each name of `out_variables`.

    `x` is ``(batch, ..., in_features)``, each dependency ``(batch, ..., out_features)``. In a layer list the
    names say which skips come in and go out; called by itself, the dependencies are further arguments.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dependencies: Sequence[str] = [],
        out_variables: Sequence[str] = [],
    ) -> None:
        super().__init__(in_features, out_features)
        self.dependencies = list(dependencies)
        self.out_variables = list(out_variables)

    def forward(self, x: Tensor, *dependencies: Tensor) -> Tensor | tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """``out``, or ``(out, {name: out})`` where names are published."""
        out = super().forward(x)
        for dependency in dependencies:
            out = out + dependency
        return (out, dict.fromkeys(self.out_variables, out)) if self.out_variables else out
