"""Derivatives of a loss that is a sum of terms: by the graphs of the terms, kept or built again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from gradflow.errors import CriterionError, InexactDerivativeError
from gradflow.loss.accuracy import Tally
from gradflow.loss.linearization import Count, Linearization, ThirdDerivative
from gradflow.loss.parameters import aligned, as_flat
from gradflow.loss.written_out import WrittenOutNorms

if TYPE_CHECKING:
    from gradflow.loss.terms import TermLoss


def value_and_gradient(loss: TermLoss, theta: Tensor, tally: Tally | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate the loss, shape (), and its gradient, shape (P,), one chunk's graph at a time."""
    value = gradient = None
    with loss.settings(theta), torch.enable_grad():
        leaves = _leaves(loss, theta)
        with loss.in_place(leaves):
            for term in loss.terms(theta, tally):
                term_value = term(leaves)
                grads = _differentiate(term_value, leaves, create_graph=False)
                value = accumulate(value, term_value.detach())
                gradient = accumulate(gradient, as_flat(grads))
    assert value is not None
    assert gradient is not None
    return value, gradient


class GraphLinearization(Linearization):
    """A linearization by the graphs of the gradient's terms.

    The gradient's graph is built once and differentiated again for every product (reverse over reverse);
    when the graphs of all chunks don't fit in memory together, they are built again, chunk by chunk, for
    every block of vectors. It lives as long as this object.

    Parameters
    ----------
    loss : TermLoss
    theta : Tensor, shape (P,)
    count, count_third : callable or None
    tally : Tally or None
        Counts what the network classifies right, for the accuracy.
    keep : bool
        Keep the graphs.
    """

    def __init__(
        self,
        loss: TermLoss,
        theta: Tensor,
        count: Count,
        count_third: Count,
        tally: Tally | None,
        *,
        keep: bool,
    ) -> None:
        loss.second.demand()
        self._loss = loss
        self._graphs: list[list[Tensor]] | None = [] if keep else None
        value = gradient = None
        with loss.settings(theta), torch.enable_grad():
            # of its own, whatever becomes of the caller's
            super().__init__(loss, theta.detach().clone(), count, count_third)
            self._leaves = _leaves(loss, self.theta)
            with loss.in_place(self._leaves):
                for term in loss.terms(theta, tally):
                    term_value = term(self._leaves)
                    grads = _differentiate(term_value, self._leaves, create_graph=keep)
                    if self._graphs is not None:
                        loss.second.look(term_value, grads)
                        self._graphs.append(grads)
                    value = accumulate(value, term_value.detach())
                    gradient = accumulate(gradient, as_flat(grads).detach())
        assert value is not None
        assert gradient is not None
        self.value = value
        self.gradient = gradient
        self.accuracy = None if tally is None else tally.accuracy

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the Hessian."""
        return self.differentiate(self.gradient_graphs, rows)

    def differentiate(self, graphs: Callable[[], Iterable[list[Tensor]]], rows: Tensor) -> Tensor:
        """Differentiate v·g for each v in rows, shape (k, P), where g is a sum of vectors with graphs.

        Parameters
        ----------
        graphs : callable
            Returns the vectors that g is the sum of, each cut like the leaves.
        rows : Tensor, shape (k, P)
        """
        product: Tensor | None = None
        with self.in_place():
            for vector in graphs():
                product = accumulate(product, self._multiply_one(vector, rows))
        assert product is not None
        return product

    def _multiply_one(self, grads: list[Tensor], rows: Tensor) -> Tensor:
        """Multiply vectors, shape (k, P), by the derivative of one vector cut like the leaves."""
        if len(rows) > 2 and self._loss.batches_products(self.theta):
            blocks = _split_like(rows, self._leaves)
            try:
                return _transposed_product(grads, self._leaves, blocks, batched=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that torch can't batch
                pass
        products = [_transposed_product(grads, self._leaves, _split_like(v, self._leaves)) for v in rows]
        return torch.stack(products) if products else torch.zeros_like(rows)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Enter the context in which graphs are built and differentiated."""
        with self._loss.settings(self.theta), torch.enable_grad(), self._loss.in_place(self._leaves):
            yield

    def gradient_graphs(self) -> Iterable[list[Tensor]]:
        """Return each term's gradient by leaf, with its graph; those that aren't kept are built one at a time."""
        return self._rebuilt() if self._graphs is None else self._graphs

    def _rebuilt(self) -> Iterator[list[Tensor]]:
        for term in self._loss.terms(self.theta):
            value = term(self._leaves)
            grads = _differentiate(value, self._leaves, create_graph=True)
            self._loss.second.look(value, grads)
            yield grads

    def _third(self, direction: Tensor) -> ThirdDerivative:
        self._loss.demand_third(self.theta)
        keep = self._graphs is not None and self._loss.keeps_graphs(self.theta.dtype, order=3)
        return _GraphThird(self, direction, keep=keep)

    def hessian_graphs(self, direction: Tensor) -> Iterator[list[Tensor]]:
        """Return each term's product of its Hessian with a direction, shape (P,), by leaf, with its graph.

        Called under :class:`WrittenOutNorms`: graphs that were kept are those of torch's own kernels.
        """
        u = _split_like(direction, self._leaves)
        for grads in self._rebuilt() if self._loss.second.normalizes else self.gradient_graphs():
            Hu = _transposed_product(grads, self._leaves, u, create_graph=True)
            self._loss.second.look_third(Hu)
            yield _split_like(Hu, self._leaves)


class _GraphThird(ThirdDerivative):
    """∇³L[u] by the graphs of H·u, each differentiated again for every product v ↦ ∇(v·H·u).

    Parameters
    ----------
    linearization : GraphLinearization
    direction : Tensor, shape (P,)
    keep : bool
        Keep the graphs of all terms; else they are built again for every block of vectors.
    """

    def __init__(self, linearization: GraphLinearization, direction: Tensor, *, keep: bool) -> None:
        super().__init__(linearization)
        self._hessian = linearization
        self._direction = direction
        self._graphs: list[list[Tensor]] | None = None
        if keep:
            with _third_settings(), linearization.in_place():
                self._graphs = list(linearization.hessian_graphs(direction))

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the derivative of the Hessian."""
        with _third_settings():
            return self._hessian.differentiate(self._products, rows)

    def _products(self) -> Iterable[list[Tensor]]:
        return self._hessian.hessian_graphs(self._direction) if self._graphs is None else self._graphs


@contextmanager
def _third_settings() -> Iterator[None]:
    """Evaluate what has third derivatives, and refuse what has none."""
    try:
        with WrittenOutNorms():
            yield
    except torch.OutOfMemoryError:
        raise
    except CheckpointError as error:  # what was evaluated by its formula is computed again by torch's kernel
        raise InexactDerivativeError(
            "There are no third derivatives of norm layers under activation checkpointing. Turn checkpointing off."
        ) from error
    except RuntimeError as error:
        if "derivative" not in str(error) and "differentia" not in str(error):
            raise
        raise InexactDerivativeError(
            "There are no third derivatives: an operation of the loss can't be differentiated three times "
            f"({str(error).splitlines()[0]}). Use an implementation in plain torch, or a flow that takes none."
        ) from error


def _leaves(loss: TermLoss, theta: Tensor) -> list[Tensor]:
    if theta.is_inference():
        theta = theta.clone()
    return [leaf.detach().requires_grad_(True) for leaf in loss.leaves(theta.detach())]


def _differentiate(value: Tensor, leaves: list[Tensor], *, create_graph: bool) -> list[Tensor]:
    """Return the gradient by leaf; zeros where the value doesn't depend on it."""
    if not value.requires_grad:
        raise CriterionError(
            "The loss doesn't depend on θ through differentiable torch functions, so that it has no gradient. "
            "Don't detach in the criterion, and don't leave torch (numpy, float(), argmax)."
        )
    grads = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]


def _transposed_product(
    grads: list[Tensor],
    leaves: list[Tensor],
    block: list[Tensor],
    *,
    batched: bool = False,
    create_graph: bool = False,
) -> Tensor:
    """Return Σ (∂g/∂θ)ᵀ v, shape (P,), for v cut like the leaves; (k, P) for a batch of k."""
    batch = block[0].shape[:1] if batched else ()
    live = [(g, v) for g, v in zip(grads, block, strict=True) if g.requires_grad]
    parts: Sequence[Tensor | None] = [None] * len(leaves)
    if live:
        g, v = zip(*live, strict=True)
        parts = torch.autograd.grad(
            g,
            leaves,
            v,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )
    pairs = zip(parts, leaves, strict=True)
    flat = [leaf.new_zeros(batch + leaf.shape) if p is None else p for p, leaf in pairs]
    product = torch.cat([part.reshape(*batch, -1) for part in flat], -1)
    return product if create_graph else product.detach()


def _split_like(vectors: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Cut a vector, shape (P,), or several, shape (k, P), like the leaves."""
    parts = torch.split(vectors, [leaf.numel() for leaf in leaves], -1)
    pairs = zip(parts, leaves, strict=True)
    return [aligned(part.view(vectors.shape[:-1] + leaf.shape)) for part, leaf in pairs]


def accumulate(total: Tensor | None, part: Tensor) -> Tensor:
    """Add `part` to a running sum; the sum of one part is that part, bit for bit."""
    return part if total is None else total + part
