"""The form of every data set once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Training and test set in float64, on the CPU; symbols are int64.

    Attributes
    ----------
    name : str
    train_inputs, test_inputs : Tensor, shape (n, …)
    train_targets, test_targets : Tensor
        Class labels, shape (n,), int64, or (n, T) of sequences, −100 where they don't count; or values, shape (n, m),
        float64.
    n_classes : int or None
        None: the targets are values.
    statistics : str or None
        The images that the means and deviations came from, if the inputs were normalised.
    n_symbols : int or None
        Of inputs that are symbols; None: they are values, or there are as many as classes.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    n_classes: int | None
    statistics: str | None = None
    n_symbols: int | None = None

    @property
    def is_of_symbols(self) -> bool:
        """Whether the inputs are symbols, and no values."""
        return not self.train_inputs.is_floating_point()

    @property
    def is_of_sequences(self) -> bool:
        """Whether each place of an input has a class of its own."""
        return self.n_classes is not None and self.train_targets.dim() > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def n_outputs(self) -> int:
        """Number of outputs of a network for these data."""
        return self.n_classes if self.n_classes is not None else self.train_targets[0].numel()
