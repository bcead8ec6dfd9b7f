"""Products that the top eigenvalues of the Hessian take along gradient descent, for every way to compute them.

The top six eigenpairs to a residual ‖Hv − λv‖/max|λ| of 1e-3, at five points that are ten steps of gradient
descent apart, in three windows of three trajectories. Solvers that can be are started from what they found at
the point before (warm); the first two points of a window are not counted. The residual is measured anew, with
products that are not counted; ARPACK's and LOBPCG's tolerances are set so that they reach it. Of solvers whose
tolerance is not a residual (Stable-Solvers), or that take a number of steps (hessian-eigenthings), the loosest
setting that reaches it counts, at every point anew, and what looser ones took does not.

    python benchmarks/eigensolver.py --data DIR [--out DIR]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse.linalg as sla
import torch
from common import cifar, cnn_tanh, fc_tanh, median, publish

import gradflow
from gradflow import SpectrumService

K, TOL, SPACING, POINTS = 6, 1e-3, 10, 5


@dataclass
class Found:
    """What a solver returned at a point."""

    vectors: torch.Tensor
    n_products: int
    seconds: float


class Service:
    """gradflow's service, with a backend; cold: a new one for every point."""

    def __init__(
        self, loss: gradflow.LossFunction, backend: str = "block-krylov", *, warm: bool = True
    ) -> None:
        self.make = lambda: SpectrumService(loss, backend=backend, max_hvps=2000)
        self.service, self.warm = self.make(), warm

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        if not self.warm:
            self.service = self.make()
        started = time.perf_counter()
        pairs = self.service.top(K, linearization, tol=TOL)
        return Found(pairs.vectors, pairs.n_hvp, time.perf_counter() - started)


class Arpack:
    """SciPy's eigsh with a number of Lanczos vectors; warm: from the sum of the last eigenvectors."""

    def __init__(self, loss: gradflow.LossFunction, ncv: int, *, warm: bool = True) -> None:
        self.ncv, self.warm, self.start = ncv, warm, None

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        P, count = linearization.shape[0], 0

        def multiply(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return linearization.hvp(torch.from_numpy(v.ravel()).to(linearization.theta)).double().numpy()

        started = time.perf_counter()
        operator = sla.LinearOperator((P, P), matvec=multiply, dtype=np.float64)
        v0 = self.start if self.warm else np.random.default_rng(0).standard_normal(P)
        _, vectors = sla.eigsh(operator, k=K, which="LA", ncv=self.ncv, tol=TOL, v0=v0)
        self.start = vectors.sum(1)
        return Found(torch.from_numpy(vectors).to(linearization.theta), count, time.perf_counter() - started)


class Curvlinops:
    """The Hessian of curvlinops in SciPy's eigsh, cold, as its documentation does it."""

    def __init__(self, loss: gradflow.LossFunction) -> None:
        self.loss = loss

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        import copy

        from curvlinops import HessianLinearOperator

        loss, count = self.loss, 0
        net = copy.deepcopy(loss.net)
        torch.nn.utils.vector_to_parameters(linearization.theta, net.parameters())
        criterion = loss.criterion
        if isinstance(criterion, gradflow.HalfSquaredError):  # ½ Σ over 10 outputs, mean over samples
            criterion = torch.nn.MSELoss(reduction="mean")
        started = time.perf_counter()
        H = HessianLinearOperator(
            net,
            criterion,
            list(net.parameters()),
            [loss.data.dataset.tensors],
            check_deterministic=False,
        )
        wrapped = H.to_scipy()

        def multiply(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return wrapped @ v.ravel().astype(np.float32)

        P = linearization.shape[0]
        operator = sla.LinearOperator((P, P), matvec=multiply, dtype=np.float64)
        v0 = np.random.default_rng(0).standard_normal(P)
        _, vectors = sla.eigsh(operator, k=K, which="LA", tol=TOL, v0=v0)
        return Found(torch.from_numpy(vectors).to(linearization.theta), count, time.perf_counter() - started)


def count_products(linearization: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[int]]:
    """Return the product with H, and a list of the numbers of vectors that it is called with."""
    counts: list[int] = []

    def multiply(v: torch.Tensor) -> torch.Tensor:
        counts.append(1 if v.dim() == 1 else v.shape[1])
        return linearization.hvp(v)

    return multiply, counts


class StableSolvers:
    """The power iteration of Stable-Solvers, from the last vectors."""

    def __init__(self, loss: gradflow.LossFunction) -> None:
        self.start: torch.Tensor | None = None

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        from stable_solvers.eigen import power_iteration_method
        from stable_solvers.operators import Operator

        multiply, counts = count_products(linearization)

        class Hessian(Operator):
            dim, device, dtype = linearization.shape[0], linearization.device, linearization.dtype

            def forward(self, vectors: torch.Tensor) -> torch.Tensor:
                return multiply(vectors)

        torch.manual_seed(0)
        for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            counts.clear()
            started = time.perf_counter()
            _, vectors = power_iteration_method(Hessian(), K, max_iters=500, tol=tol, init_eigvecs=self.start)
            found = Found(vectors, sum(counts), time.perf_counter() - started)
            if residual(linearization, vectors) <= TOL:
                break
        self.start = found.vectors
        return found


class HessianEigenthings:
    """The Lanczos method of hessian-eigenthings, from a random vector."""

    def __init__(self, loss: gradflow.LossFunction) -> None:
        pass

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        from hessian_eigenthings import LambdaOperator, lanczos

        multiply, counts = count_products(linearization)
        operator = LambdaOperator(multiply, linearization.shape[0], dtype=linearization.dtype)
        for steps in range(2 * K, 200, 2):
            counts.clear()
            started = time.perf_counter()
            result = lanczos(operator, k=K, max_iter=steps, which="LA", reorthogonalize=True, seed=0)
            vectors = result.eigenvectors.reshape(K, -1).T
            found = Found(vectors, sum(counts), time.perf_counter() - started)
            if residual(linearization, vectors) <= TOL:
                break
        return found


SOLVERS: dict[str, Callable[[gradflow.LossFunction], Callable[[Any], Found]]] = {
    "gradflow": Service,
    "gradflow, cold": lambda loss: Service(loss, warm=False),
    "ARPACK warm, ncv 10": lambda loss: Arpack(loss, 10),
    "ARPACK warm, ncv 12": lambda loss: Arpack(loss, 12),
    "ARPACK warm, ncv 20 (default)": lambda loss: Arpack(loss, 20),
    "ARPACK cold, ncv 20": lambda loss: Arpack(loss, 20, warm=False),
    "LOBPCG warm": lambda loss: Service(loss, "lobpcg"),
    "LOBPCG cold": lambda loss: Service(loss, "lobpcg", warm=False),
    "Stable-Solvers' power iteration, warm": StableSolvers,
    "hessian-eigenthings' Lanczos, cold": HessianEigenthings,
    "curvlinops + ARPACK, cold": Curvlinops,
}


def trajectories(directory: str | None) -> dict[str, tuple[gradflow.LossFunction, float, tuple[int, ...]]]:
    """Return (loss, learning rate, first steps of the windows) by name."""
    digits, _, _ = gradflow.problems.load("digits", "fc-tanh", "mse")
    return {
        "digits, fc-tanh, mse": (digits, 0.3, (0, 200, 1000)),
        "CIFAR-10, fc-tanh, mse": (cifar(lambda: fc_tanh(100), 500, "mse", directory), 0.01, (0, 200, 1000)),
        "CIFAR-10, cnn-tanh, ce": (cifar(cnn_tanh, 100, "ce", directory), 0.02, (0, 200, 600)),
    }


def residual(linearization: Any, vectors: torch.Tensor) -> float:
    """Measure max ‖Hv − λv‖/max|λ| with λ the Rayleigh quotients."""
    V = torch.linalg.qr(vectors.double())[0].to(vectors)
    HV = linearization.hvp(V)
    λ = (V * HV).sum(0)
    return float((HV - λ * V).norm(dim=0).max() / λ.abs().max())


def measure(
    loss: gradflow.LossFunction, lr: float, windows: tuple[int, ...]
) -> dict[str, list[list[Found | float]]]:
    """Run every solver at every point, interleaved."""
    theta, results = loss.parameters(), {name: [] for name in SOLVERS}
    step, solvers = 0, {}
    while step < windows[-1] + SPACING * POINTS:
        begun = [w for w in windows if w <= step < w + SPACING * POINTS]
        if begun and (step - begun[0]) % SPACING == 0:
            if step == begun[0]:
                solvers = {name: make(loss) for name, make in SOLVERS.items()}
            for name, solve in solvers.items():
                point = loss.linearize(theta)
                found = solve(point)
                if step >= begun[0] + 2 * SPACING:
                    results[name].append((found.n_products, residual(point, found.vectors), found.seconds))
        theta = theta - lr * loss.gradient(theta)[1]
        step += 1
    return results


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sections, totals = {}, {name: [] for name in SOLVERS}
    for title, (loss, lr, windows) in trajectories(args.data).items():
        print(title, flush=True)
        rows, per_window = [], POINTS - 2
        results = measure(loss, lr, windows)
        for name, found in results.items():
            products = [f[0] for f in found]
            totals[name] += products
            means = [np.mean(products[i : i + per_window]) for i in range(0, len(products), per_window)]
            rows.append(
                {"solver": name}
                | {
                    f"steps {w}–{w + SPACING * POINTS}": f"{mean:.1f}"
                    for w, mean in zip(windows, means, strict=True)
                }
                | {
                    "worst residual": f"{max(f[1] for f in found):.0e}",
                    "seconds a point": f"{median([f[2] for f in found]):.3f}",
                }
            )
        sections[f"{title}: products a point"] = rows
    best = min(np.mean(p) for name, p in totals.items() if name.startswith("ARPACK warm"))
    sections["Over all points"] = [
        {
            "solver": name,
            "products a point": f"{np.mean(p):.1f}",
            "over ARPACK's best": f"{np.mean(p) / best:.2f}",
        }
        for name, p in totals.items()
    ]
    publish(
        "eigensolver", args.out, "Eigensolvers", sections, (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    )


if __name__ == "__main__":
    main()
