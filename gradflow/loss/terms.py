"""Losses that are a sum of terms, each a differentiable scalar of the parameter leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.loss.accuracy import Tally
from gradflow.loss.check import CHECKED_SAMPLES, examine_third
from gradflow.loss.checkpointing import DIFFERENTIATED_LATER
from gradflow.loss.difference import DifferenceLinearization
from gradflow.loss.function import Evaluation, LossFunction
from gradflow.loss.graphs import GraphLinearization, accumulate, value_and_gradient
from gradflow.loss.linearization import Count, Linearization
from gradflow.loss.second_derivatives import SecondDerivatives

Term = Callable[[Sequence[Tensor]], Tensor]


class TermLoss(LossFunction):
    """A loss as a sum of terms, whose graphs are built and differentiated one after another.

    Attributes
    ----------
    second : SecondDerivatives
        Whether products with the Hessian can be trusted.
    recomputes : bool
        Differentiation evaluates parts of the terms again (activation checkpointing), so that it must happen
        while the leaves are in place.
    by_difference : bool
        Products with the Hessian are differences of gradients.
    """

    second: SecondDerivatives
    recomputes = False
    by_difference = False

    def terms(self, theta: Tensor, tally: Tally | None = None) -> Iterator[Term]:
        """Return the terms, on θ's device and in its dtype; their sum is the loss.

        Terms of a network count in `tally` which samples it classifies right.
        """
        raise NotImplementedError

    def on_few_samples(self, n: int) -> TermLoss:
        """Return the loss on at most n samples, in one chunk, whose derivatives nobody has looked at yet."""
        raise NotImplementedError

    @property
    def has_exact_products(self) -> bool:
        """Whether products with the Hessian are exact to rounding."""
        return not self.by_difference

    def in_place(self, leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Return the context in which terms of these leaves are evaluated, and differentiated."""
        return nullcontext()

    def batches_products(self, theta: Tensor) -> bool:
        """Whether several Hessian–vector products are cheaper at once than one after another."""
        raise NotImplementedError

    def settings(self, theta: Tensor) -> Any:
        """Return the settings of torch under which terms are evaluated and differentiated."""
        raise NotImplementedError

    @property
    def functions(self) -> list[str]:
        """The subclasses of ``torch.autograd.Function`` that were seen in the graph of the loss."""
        return self.second.functions

    def demand_third(self, theta: Tensor) -> None:
        """Refuse third derivatives that are wrong: the first time, they are set against differences of H·v."""
        if not self.second.third_is_checked:
            self.second.third_is_checked = True
            few = self.on_few_samples(CHECKED_SAMPLES)
            few.second.third_is_checked = True
            self.second.wrong_third = examine_third(few, theta)
        self.second.demand_third()

    # ------------------------------------------------------------------ values and derivatives

    def _value(self, theta: Tensor) -> Tensor:
        if self.recomputes and theta.requires_grad and torch.is_grad_enabled():
            raise InvalidInputError(DIFFERENTIATED_LATER)
        value = None
        leaves = self.leaves(theta)
        with self.settings(theta), self.in_place(leaves):
            for term in self.terms(theta):
                value = accumulate(value, term(leaves))
        assert value is not None
        return value

    def _evaluated(self, theta: Tensor, *, accuracy: bool) -> Evaluation:
        tally = Tally() if accuracy and self.classifies else None
        value, gradient = value_and_gradient(self, theta, tally)
        return Evaluation(value, gradient, None if tally is None else tally.accuracy)

    def _linearized(
        self, theta: Tensor, *, count: Count, count_third: Count, accuracy: bool, keep: bool
    ) -> Linearization:
        tally = Tally() if accuracy and self.classifies else None
        if self.by_difference:
            return DifferenceLinearization(self, theta, count, count_third, tally)
        return GraphLinearization(self, theta, count, count_third, tally, keep=keep)

    def _evaluate(self, theta: Tensor) -> tuple[float, float]:
        tally = Tally()
        leaves = self.leaves(theta.detach())
        with self.settings(theta), torch.no_grad(), self.in_place(leaves):
            value = sum(float(term(leaves)) for term in self.terms(theta, tally))
        return value, float(tally.accuracy)
