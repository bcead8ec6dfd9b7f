"""A loss at one θ: value, gradient, and Hessian–vector products from one kept graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradflow.collective import reduce
from gradflow.errors import CriterionError, InvalidInputError, InvalidTypeError
from gradflow.loss.parameters import aligned
from gradflow.loss.source import LossSource, Term, accumulate, as_flat


def value_and_gradient(source: LossSource, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate the loss, shape (), and its gradient, shape (P,), one chunk's graph at a time."""
    value = gradient = None
    with source.settings(theta), torch.enable_grad():
        leaves = _leaves(source, theta)
        with source.in_place(leaves):
            for term in source.terms(theta):
                term_value = term(leaves)
                grads = _differentiate(term_value, leaves, create_graph=False)
                value = accumulate(value, term_value.detach())
                gradient = accumulate(gradient, as_flat(grads))
    assert value is not None
    assert gradient is not None
    return reduce(value), reduce(gradient)


class Linearization:
    """The loss at one θ, ready for many products with its Hessian H.

    The gradient's graph is built once and differentiated again for every product (reverse over reverse);
    when the graphs of all chunks don't fit in memory together, they are built again, chunk by chunk, for
    every block of vectors. It lives as long as this object. As ``lin @ V`` it is a symmetric operator for
    :class:`gradflow.SpectrumService`. Where the gradient comes from an operation that can't be differentiated
    again, that is an ``InexactDerivativeError``, here or at the first product.

    Attributes
    ----------
    source : object
        The loss that it belongs to.
    theta : Tensor, shape (P,)
    value : Tensor, shape ()
    gradient : Tensor, shape (P,)
    n_hvps : int
        Products computed so far; a block of k vectors counts k.

    Examples
    --------
    >>> from gradflow import LossFunction
    >>> loss = LossFunction.from_callable(lambda x: (x**3).sum())
    >>> lin = loss.linearize(torch.tensor([1.0, 2.0]))
    >>> lin.gradient, lin.hvp(torch.ones(2))
    (tensor([ 3., 12.]), tensor([ 6., 12.]))
    """

    def __init__(self, source: LossSource, theta: Tensor) -> None:
        source.second.demand()
        self.source = source
        self.n_hvps = 0
        self._count: Callable[[int], None] | None = None
        self._count_third: Callable[[int], None] | None = None
        self._graphs: list[list[Tensor]] | None = [] if source.keeps_graphs(theta) else None
        value = gradient = None
        with source.settings(theta), torch.enable_grad():
            self.theta = theta.detach().clone()  # of its own, whatever becomes of the caller's
            self._leaves = _leaves(source, self.theta)
            with source.in_place(self._leaves):
                for term in source.terms(theta):
                    term_value = term(self._leaves)
                    grads = _differentiate(term_value, self._leaves, create_graph=self._graphs is not None)
                    if self._graphs is not None:
                        source.second.look(term_value, grads)
                        self._graphs.append(grads)
                    value = accumulate(value, term_value.detach())
                    gradient = accumulate(gradient, as_flat(grads).detach())
        assert value is not None
        assert gradient is not None
        self.value = reduce(value)
        self.gradient = reduce(gradient)

    def counted(
        self, count: Callable[[int], None], count_third: Callable[[int], None] | None = None
    ) -> Linearization:
        """Return a view of this one that shares its graphs, and tells of each product how many vectors it took."""
        view = copy.copy(self)
        view._count, view._count_third = count, count_third
        return view

    def third(self, u: Tensor) -> _Third:
        return _Third(self, u)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P), as of the Hessian."""
        return (self.theta.numel(), self.theta.numel())

    @property
    def dtype(self) -> torch.dtype:
        """Of θ."""
        return self.theta.dtype

    @property
    def device(self) -> torch.device:
        """Of θ."""
        return self.theta.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.hvp(vectors)

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply vectors by the Hessian.

        Parameters
        ----------
        vectors : Tensor, shape (P,) or (P, k)
            In θ's dtype and on its device.

        Returns
        -------
        Tensor, of the shape of `vectors`
            H·V.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If shape, device or dtype don't match θ.
        """
        _check_vectors(vectors, self.theta)
        with self.source.settings(self.theta), torch.enable_grad():
            if vectors.is_inference():
                vectors = vectors.clone()
            rows = vectors.T.contiguous() if vectors.dim() == 2 else vectors.contiguous()[None]
            product: Tensor | None = None
            with self.source.in_place(self._leaves):
                for grads in self._gradient_graphs():
                    product = accumulate(product, self._multiply(grads, rows))
        self.n_hvps += len(rows)
        if self._count is not None:
            self._count(len(rows))
        assert product is not None
        product = reduce(product)
        return product.T if vectors.dim() == 2 else product[0]

    def _multiply(self, grads: list[Tensor], rows: Tensor) -> Tensor:
        """Multiply vectors, shape (k, P), by the second derivatives of one term."""
        if len(rows) > 2 and self.source.batches_products(self.theta):
            blocks = _split_like(rows, self._leaves)
            try:
                return _second_derivative(grads, self._leaves, blocks, batched=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that torch can't batch
                pass
        products = [_second_derivative(grads, self._leaves, _split_like(v, self._leaves)) for v in rows]
        return torch.stack(products) if products else torch.zeros_like(rows)

    def _gradient_graphs(self) -> Sequence[list[Tensor]] | _Rebuilt:
        if self._graphs is not None:
            return self._graphs
        return _Rebuilt(self.source, self.theta, self._leaves)


class _Third:
    def __init__(self, lin, u):
        self._lin = lin
        lin_source, leaves = lin.source, lin._leaves
        self._graphs = []
        with lin_source.settings(lin.theta), torch.enable_grad(), lin_source.in_place(leaves):
            for grads in lin._graphs:
                live = [(g, v) for g, v in zip(grads, _split_like(u, leaves), strict=True) if g.requires_grad]
                g, v = zip(*live)
                parts = torch.autograd.grad(g, leaves, v, create_graph=True, allow_unused=True)
                self._graphs.append([torch.zeros_like(l) if p is None else p for p, l in zip(parts, leaves)])

    def __matmul__(self, vectors):
        rows = vectors.T if vectors.dim() == 2 else vectors[None]
        lin = self._lin
        with lin.source.settings(lin.theta), torch.enable_grad(), lin.source.in_place(lin._leaves):
            out = sum(
                torch.stack(
                    [
                        _second_derivative(gr, lin._leaves, _split_like(r.contiguous(), lin._leaves))
                        for r in rows
                    ]
                )
                for gr in self._graphs
            )
        if lin._count_third is not None:
            lin._count_third(len(rows))
        return out.T if vectors.dim() == 2 else out[0]


class _Rebuilt:
    """Gradient graphs built one after another, so that one is alive at a time."""

    def __init__(self, source: LossSource, theta: Tensor, leaves: list[Tensor]) -> None:
        self._source = source
        self._terms = source.terms(theta)
        self._leaves = leaves

    def __iter__(self) -> _Rebuilt:
        return self

    def __next__(self) -> list[Tensor]:
        term: Term = next(self._terms)
        value = term(self._leaves)
        grads = _differentiate(value, self._leaves, create_graph=True)
        self._source.second.look(value, grads)
        return grads


def _leaves(source: LossSource, theta: Tensor) -> list[Tensor]:
    if theta.is_inference():
        theta = theta.clone()
    return [leaf.detach().requires_grad_(True) for leaf in source.leaves(theta.detach())]


def _differentiate(value: Tensor, leaves: list[Tensor], *, create_graph: bool) -> list[Tensor]:
    """Return the gradient by leaf; zeros where the value doesn't depend on it."""
    if not value.requires_grad:
        raise CriterionError(
            "The loss doesn't depend on θ through differentiable torch functions, so that it has no gradient. "
            "Don't detach in the criterion, and don't leave torch (numpy, float(), argmax)."
        )
    grads = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]


def _second_derivative(
    grads: list[Tensor], leaves: list[Tensor], block: list[Tensor], *, batched: bool = False
) -> Tensor:
    """Return Σ (∂g/∂θ)ᵀ v, shape (P,), for v cut like the leaves; (k, P) for a batch of k."""
    batch = block[0].shape[:1] if batched else ()
    live = [(g, v) for g, v in zip(grads, block, strict=True) if g.requires_grad]
    parts: Sequence[Tensor | None] = [None] * len(leaves)
    if live:
        g, v = zip(*live, strict=True)
        parts = torch.autograd.grad(
            g, leaves, v, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
    pairs = zip(parts, leaves, strict=True)
    flat = [(leaf.new_zeros(batch + leaf.shape) if p is None else p.detach()) for p, leaf in pairs]
    return torch.cat([part.reshape(*batch, -1) for part in flat], -1)


def _split_like(vectors: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Cut a vector, shape (P,), or several, shape (k, P), like the leaves."""
    parts = torch.split(vectors, [leaf.numel() for leaf in leaves], -1)
    pairs = zip(parts, leaves, strict=True)
    return [aligned(part.view(vectors.shape[:-1] + leaf.shape)) for part, leaf in pairs]


def _check_vectors(vectors: Tensor, theta: Tensor) -> None:
    if not isinstance(vectors, Tensor):
        raise InvalidTypeError(f"Expected vectors as a torch.Tensor, got {type(vectors).__name__}.")
    P = theta.numel()
    if vectors.dim() not in {1, 2} or vectors.shape[0] != P:
        raise InvalidInputError(f"Expected vectors of shape ({P},) or ({P}, k), got {tuple(vectors.shape)}.")
    if vectors.dtype != theta.dtype:
        raise InvalidTypeError(
            f"Expected vectors in θ's dtype {theta.dtype}, got {vectors.dtype}. Convert with .to(theta)."
        )
    if vectors.device != theta.device:
        raise InvalidInputError(
            f"Expected vectors on θ's device {theta.device}, got {vectors.device}. Convert with .to(theta)."
        )
