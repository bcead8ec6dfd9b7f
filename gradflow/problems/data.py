"""The form of every data set once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Training and test set in float64, on the CPU.

    Attributes
    ----------
    name : str
    train_inputs, test_inputs : Tensor, shape (n, …)
    train_targets, test_targets : Tensor
        Class labels, shape (n,), int64; or values, shape (n, m), float64.
    n_classes : int or None
        None: the targets are values.
    statistics : str or None
        The images that the means and deviations came from, if the inputs were normalised.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    n_classes: int | None
    statistics: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def n_outputs(self) -> int:
        """Number of outputs of a network for these data."""
        return self.n_classes if self.n_classes is not None else self.train_targets[0].numel()
