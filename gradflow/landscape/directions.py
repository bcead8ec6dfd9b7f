"""Directions in parameter space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import xarray as xr
from torch import Tensor, nn

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.landscape.arguments import Trajectory, as_theta, as_trajectory, final_theta
from gradflow.loss import Loss, as_loss
from gradflow.loss.data_loss import DataLoss
from gradflow.spectrum import SpectrumService

_NORMALIZATIONS = ("filter", "layer", "unit")


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in parameter space, with a name.

    Attributes
    ----------
    vector : Tensor, shape (P,)
        One unit of a slice's coordinate; not necessarily of norm 1.
    name : str
        For axes.
    measured : mapping of str to float
        Measurements of the direction: its eigenvalue, its explained variance.
    """

    vector: Tensor
    name: str
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """2-norm of the vector."""
        return float(torch.linalg.vector_norm(self.vector, dtype=torch.float64))


def eigenvectors(
    loss: Loss, theta: Tensor, indices: Sequence[int] = (0, 1), *, tol: float = 1e-4
) -> list[Direction]:
    """Return eigenvectors of the Hessian at θ.

    Parameters
    ----------
    loss : LossFunction or callable
    theta : Tensor, shape (P,)
    indices : sequence of int, default (0, 1)
        Counted from the largest eigenvalue, 0, 1, …; negative ones from the smallest, −1, −2, …
    tol : float, default 1e-4
        Residual ‖Hv − λv‖/max|λ| to reach.

    Returns
    -------
    list of Direction
        Unit vectors, the largest entry of each positive, named after λ₁, λ₂, … from the top and λ₋₁, λ₋₂, … from the
        bottom. ``measured`` has ``eigenvalue`` and ``residual``, which tells whether the tolerance was met.

    Examples
    --------
    >>> bowl = lambda x: 0.5 * (torch.tensor([1.0, 10.0, -2.0]) * x**2).sum()
    >>> stiff, negative = eigenvectors(bowl, torch.ones(3), (0, -1))
    >>> stiff.vector, negative.name
    (tensor([0., 1., 0.]), 'eigenvector of λ₋₁ = −2')
    """
    loss = as_loss(loss)
    theta = as_theta(loss, theta)
    P = theta.numel()
    if not indices:
        raise InvalidInputError("Expected at least one index of an eigenvector, got none.")
    for i in indices:
        check_count("each of indices", i, least=-P)
        if i >= P:
            raise InvalidInputError(f"Expected indices below P = {P}, got {i}.")
    spectrum, hessian = SpectrumService(loss), loss.linearize(theta)
    n_top, n_bottom = max(indices) + 1, -min(indices)
    top = spectrum.top(n_top, hessian, tol=tol) if n_top > 0 else None
    bottom = spectrum.bottom(n_bottom, hessian, tol=tol) if n_bottom > 0 else None
    found = []
    for i in indices:
        pairs, j = (top, i) if i >= 0 else (bottom, -i - 1)
        assert pairs is not None
        λ = float(pairs.values[j])
        measured = {"eigenvalue": λ, "residual": float(pairs.residuals[j])}
        found.append(Direction(_with_sign(pairs.vectors[:, j]), _eigenvector_name(i, λ), measured))
    return found


def difference(a: Tensor | xr.Dataset, b: Tensor | xr.Dataset, name: str = "b − a") -> Direction:
    """Return the direction from one θ to another: coordinate 0 is `a`, 1 is `b` on a slice through `a`.

    Parameters
    ----------
    a, b : Tensor of shape (P,), or run
        For a run, its final θ is taken.
    name : str

    Returns
    -------
    Direction
        b − a, not normalised.

    Examples
    --------
    >>> difference(torch.zeros(2), torch.tensor([3.0, 4.0])).norm
    5.0
    """
    start, end = final_theta(a), final_theta(b)
    if start.shape != end.shape or start.dim() != 1:
        raise InvalidInputError(
            f"Expected two θ of one shape (P,), got {tuple(start.shape)} and {tuple(end.shape)}."
        )
    return check_direction(Direction(end.to(start) - start, name), start)


def principal_directions(trajectory: Trajectory, n: int = 2) -> list[Direction]:
    """Return the principal components of a trajectory.

    Parameters
    ----------
    trajectory : run, Tensor of shape (m, P), or sequence of Tensor of shape (P,)
        A run must have been recorded with θ.
    n : int, default 2

    Returns
    -------
    list of Direction
        Orthonormal, by falling variance about the mean of the trajectory; the largest entry of each is positive.
        ``measured`` has ``explained_variance``, a fraction of the whole.

    Raises
    ------
    InvalidInputError
        If the trajectory spans fewer than n directions.

    Examples
    --------
    >>> path = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    >>> [d.measured["explained_variance"] for d in principal_directions(path)]
    [0.9, 0.1]
    """
    check_count("n", n, least=1)
    _, thetas = as_trajectory(trajectory)
    wide = thetas.double()
    _, S, rows = torch.linalg.svd(wide - wide.mean(0), full_matrices=False)
    rounding = torch.finfo(thetas.dtype).eps * float(torch.linalg.matrix_norm(wide))  # that of θ itself
    rank = int((rounding < S).sum())
    if rank < n:
        raise InvalidInputError(
            f"Expected a trajectory that spans n = {n} directions, got {rank} from {len(thetas)} points. Ask for fewer."
        )
    fractions = S**2 / (S**2).sum()
    found = []
    for i in range(n):
        explained = float(fractions[i])
        name = f"principal component {i + 1} ({100 * explained:.3g} % of the variance)"
        found.append(Direction(_with_sign(rows[i]).to(thetas.dtype), name, {"explained_variance": explained}))
    return found


def random_directions(
    loss: Loss, theta: Tensor, n: int = 2, *, normalize: str = "filter", biases: bool = False, seed: int = 0
) -> list[Direction]:
    """Return random directions, scaled as θ is, filter by filter.

    Networks are often invariant to a scaling of their weights, so a slice in plain random directions shows as
    much of the scale of the weights as of the loss. With ``"filter"`` each filter of a convolution, and each row of
    a matrix (a neuron's weights), has the norm that it has in θ (Li et al. 2018).

    Parameters
    ----------
    loss : LossFunction or callable
        One with a network, unless `normalize` is ``"unit"``.
    theta : Tensor, shape (P,)
    n : int, default 2
    normalize : {"filter", "layer", "unit"}
        What has the norm that it has in θ: each filter, each parameter tensor; or the direction as a whole has
        norm 1.
    biases : bool, default False
        Move parameters of fewer than two dimensions, and those of normalisation layers (modules whose class has
        Norm in its name), as well; each of these tensors has the norm that it has in θ. By default they are zero.
        No effect on ``"unit"``.
    seed : int, default 0
        Seed of a generator of their own. The first of two directions is that of n = 1.

    Returns
    -------
    list of Direction

    Raises
    ------
    InvalidInputError
        If the loss has no network, or all filters of θ are zero.
    """
    loss = as_loss(loss)
    theta = as_theta(loss, theta)
    check_count("n", n, least=1)
    check_count("seed", seed)
    if normalize not in _NORMALIZATIONS:
        raise UnknownNameError(f"No normalization {normalize!r}; {suggest(normalize, _NORMALIZATIONS)}")
    network = loss.data_term
    if normalize != "unit" and network is None:
        raise InvalidInputError(
            f'normalize="{normalize}" needs a network; this loss is a callable. Pass normalize="unit".'
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    found = []
    for i in range(n):
        draw = torch.randn(theta.numel(), generator=generator, dtype=torch.float64, device="cpu")
        if network is not None and normalize != "unit":
            draw = _normalized(draw, theta.cpu().double(), network, normalize, biases=biases)
        else:
            draw = draw / torch.linalg.vector_norm(draw)
        name = f"random direction {i + 1}" + ("" if normalize == "unit" else f", {normalize}-normalised")
        found.append(check_direction(Direction(draw.to(theta), name), theta))
    return found


def check_direction(direction: Tensor | Direction, theta: Tensor) -> Direction:
    """Return a direction in θ's dtype and on its device; refuse what is none there.

    Parameters
    ----------
    direction : Tensor of shape (P,), or Direction
        A tensor is called “direction”.
    theta : Tensor, shape (P,)

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If it isn't of θ's shape, not finite, or zero.
    """
    given = Direction(direction, "direction") if isinstance(direction, Tensor) else direction
    if not isinstance(given, Direction):
        raise InvalidTypeError(
            f"Expected a direction as a flat torch.Tensor or a Direction, got {type(direction).__name__}."
        )
    vector = given.vector.detach()
    if vector.shape != theta.shape:
        raise InvalidInputError(
            f"Expected a direction of θ's shape {tuple(theta.shape)}, got {tuple(vector.shape)}."
        )
    checked = Direction(vector.to(theta), given.name, given.measured)
    check_number(f"the norm of {given.name!r}", checked.norm)
    if checked.norm == 0:
        raise InvalidInputError(
            f"Expected a direction that isn't zero, got {given.name!r}, which is. Choose another."
        )
    return checked


def _eigenvector_name(i: int, λ: float) -> str:
    subscript = str(i if i < 0 else i + 1).translate(str.maketrans("-0123456789", "₋₀₁₂₃₄₅₆₇₈₉"))
    return f"eigenvector of λ{subscript} = {λ:.4g}".replace("-", "−")


def _with_sign(vector: Tensor) -> Tensor:
    """Return ±v, its largest entry in magnitude positive."""
    return vector * vector[vector.abs().argmax()].sign()


def _normalized(draw: Tensor, theta: Tensor, network: DataLoss, normalize: str, *, biases: bool) -> Tensor:
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in network.net.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    parts = []
    for name, d, w in zip(network.names, network.leaves(draw), network.leaves(theta), strict=True):
        is_filters = w.dim() >= 2 and "Norm" not in type(owners[name]).__name__
        if not is_filters and not biases:
            parts.append(torch.zeros_like(w).flatten())
            continue
        shape, dims = _filters(w, owners[name]) if normalize == "filter" and is_filters else ((-1,), (0,))
        d, w = d.reshape(shape), w.reshape(shape)
        norms = [torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (w, d)]
        parts.append((d * (norms[0] / norms[1])).flatten())
    return torch.cat(parts)


def _filters(weight: Tensor, owner: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape to which a weight is cut, and the dimensions over which a filter extends."""
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):  # (in, out/groups, …): a filter is of one output
        n_in, n_out = weight.shape[:2]
        return (owner.groups, n_in // owner.groups, n_out, math.prod(weight.shape[2:])), (1, 3)
    return (len(weight), -1), (1,)
