"""Count how often the warm-started eigensolver misses an eigenvalue that rises out of the bulk.

One eigenvalue of the bulk rises to the top from solve to solve, on matrices of dimension 1,500:

narrow bulk   outliers 100, 50, 30, 20, 10, 8 above a bulk in [0, 1]; three speeds
wide bulk     an outlier 10 above a bulk that fills [0, 9] evenly, or as the eighth power; one speed

Prints in how many solves one of the top k eigenvalues was off by more than 2 % of the largest although
the residuals said that all had converged, and what a solve cost: without looking beyond the last basis, by
default, with more of it, and for SciPy's warm-started `eigsh`.

    python benchmarks/missed_eigenvalues.py
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from gradflow import SpectrumService
from gradflow.spectrum import block_krylov

P = 1500


#: Constants of the eigensolver by name of the setting; None: SciPy's eigsh.
SETTINGS = {
    "no probing": {"PROBES": 0, "MOST_PROBES": 0, "MIXED": 0.0},
    "nothing random": {"MIXED": 0.0},
    "default": {},
    "four rounds or more": {"PROBES": 4, "MOST_PROBES": 8},
    "eigsh, warm": None,
}


@contextlib.contextmanager
def changed(settings: dict[str, float]) -> Iterator[None]:
    """Set constants of the eigensolver for a while."""
    before = {name: getattr(block_krylov, name) for name in settings}
    for name, value in settings.items():
        setattr(block_krylov, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(block_krylov, name, value)


class Diagonal:
    """A diagonal operator: nothing in the solvers knows the basis."""

    dtype, device, shape = torch.float64, torch.device("cpu"), (P, P)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.values[:, None] * vectors


def count(backend: str, bulk: Tensor, rises: Tensor, k: int) -> tuple[int, int, int]:
    """Give (misses, solves, products) with the 61st eigenvalue set to `rises`, one after the other."""
    service = SpectrumService(backend=backend)
    misses = 0
    for value in rises:
        now = bulk.clone()
        now[60] = value
        expected = now.sort(descending=True).values[:k]
        pairs = service.top(k, Diagonal(now), tol=1e-3)
        misses += bool(pairs.converged.all()) and bool(
            (pairs.values - expected).abs().max() > 0.02 * expected[0]
        )
    return misses, len(rises), service.n_hvps


def cases(kind: str) -> list[tuple[Tensor, Tensor, int]]:
    """Give (eigenvalues, values of the one that rises, k)."""
    even = torch.linspace(0, 1, P, dtype=torch.float64)
    if kind == "narrow":
        outliers = torch.tensor([100.0, 50.0, 30.0, 20.0, 10.0, 8.0], dtype=torch.float64)
        spectrum = torch.cat([outliers, even[6:]])
        speeds = (4.0, 1.0, 0.25)
        return [
            (spectrum, torch.arange(0.5, 110.0, s, dtype=torch.float64), k) for k in (1, 3) for s in speeds
        ]
    rises = torch.arange(8.0, 16.0, 0.1, dtype=torch.float64)
    top = torch.tensor([10.0], dtype=torch.float64)
    return [(torch.cat([top, 9 * even[1:] ** power]), rises, k) for k in (1, 3) for power in (1, 8)]


def main() -> None:
    """Print the table."""
    print(f"{'bulk':8}{'solver':26}{'missed':>8}{'of':>7}{'products a solve':>18}")
    for kind in ("narrow", "wide"):
        for name, settings in SETTINGS.items():
            backend = "eigsh" if settings is None else "block-krylov"
            with changed(settings or {}):
                rows = [count(backend, *case) for case in cases(kind)]
            misses, solves, products = (sum(column) for column in zip(*rows, strict=True))
            print(f"{kind:8}{name:26}{misses:8d}{solves:7d}{products / solves:18.1f}", flush=True)


if __name__ == "__main__":
    main()
