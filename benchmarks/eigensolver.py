"""Products that the top eigenvalues of the Hessian take along gradient descent, for every way to compute them.

The top one, six or twenty eigenpairs to a residual ‖Hv − λv‖/max|λ| of 1e-3, at five points that are ten steps of
gradient descent apart, in windows of six trajectories; the solver was tuned on the first three, for six pairs, and
never on the others ("held out"). Solvers that can be are started from what they found at the point before (warm);
the first two points of a window are not counted. The residual is measured anew, with products that are not counted;
ARPACK's and LOBPCG's tolerances are set so that they reach it. Of solvers whose tolerance is not a residual
(Stable-Solvers), or that take a number of steps (hessian-eigenthings), the loosest setting that reaches it counts,
at every point anew, and what looser ones took does not.

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
from flows import relu, resnet, transformer

import gradflow
from gradflow import SpectrumService

TOL, SPACING, POINTS = 1e-3, 10, 5
#: Numbers of eigenpairs, and of the Lanczos vectors that ARPACK is tried with; the last is SciPy's default.
NCV = {1: (5, 10, 20), 6: (10, 12, 20), 20: (26, 30, 41)}
#: The number for which the solvers of other libraries run as well.
ALL = 6


@dataclass
class Found:
    """What a solver returned at a point."""

    vectors: torch.Tensor
    n_products: int
    seconds: float


class Service:
    """gradflow's service, with a backend; cold: a new one for every point."""

    def __init__(
        self, loss: gradflow.LossFunction, k: int, backend: str = "block-krylov", *, warm: bool = True
    ) -> None:
        self.k = k
        self.make = lambda: SpectrumService(loss, backend=backend, max_hvps=2000)
        self.service, self.warm = self.make(), warm

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        if not self.warm:
            self.service = self.make()
        started = time.perf_counter()
        pairs = self.service.top(self.k, linearization, tol=TOL)
        return Found(pairs.vectors, pairs.n_hvp, time.perf_counter() - started)


class Arpack:
    """SciPy's eigsh with a number of Lanczos vectors; warm: from the sum of the last eigenvectors."""

    def __init__(self, loss: gradflow.LossFunction, k: int, ncv: int, *, warm: bool = True) -> None:
        self.k, self.ncv, self.warm, self.start = k, ncv, warm, None

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
        _, vectors = sla.eigsh(operator, k=self.k, which="LA", ncv=self.ncv, tol=TOL, v0=v0)
        self.start = vectors.sum(1)
        return Found(torch.from_numpy(vectors).to(linearization.theta), count, time.perf_counter() - started)


class Curvlinops:
    """The Hessian of curvlinops in SciPy's eigsh, cold, as its documentation does it."""

    def __init__(self, loss: gradflow.LossFunction, k: int) -> None:
        self.loss, self.k = loss, k

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
        _, vectors = sla.eigsh(operator, k=self.k, which="LA", tol=TOL, v0=v0)
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

    def __init__(self, loss: gradflow.LossFunction, k: int) -> None:
        self.k = k
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
            _, vectors = power_iteration_method(
                Hessian(), self.k, max_iters=500, tol=tol, init_eigvecs=self.start
            )
            found = Found(vectors, sum(counts), time.perf_counter() - started)
            if residual(linearization, vectors) <= TOL:
                break
        self.start = found.vectors
        return found


class HessianEigenthings:
    """The Lanczos method of hessian-eigenthings, from a random vector."""

    def __init__(self, loss: gradflow.LossFunction, k: int) -> None:
        self.k = k

    def __call__(self, linearization: Any) -> Found:
        """Solve at a point."""
        from hessian_eigenthings import LambdaOperator, lanczos

        multiply, counts = count_products(linearization)
        operator = LambdaOperator(multiply, linearization.shape[0], dtype=linearization.dtype)
        for steps in range(2 * self.k, 200, 2):
            counts.clear()
            started = time.perf_counter()
            result = lanczos(operator, k=self.k, max_iter=steps, which="LA", reorthogonalize=True, seed=0)
            vectors = result.eigenvectors.reshape(self.k, -1).T
            found = Found(vectors, sum(counts), time.perf_counter() - started)
            if residual(linearization, vectors) <= TOL:
                break
        return found


Solver = Callable[[Any], Found]


def solvers_of(k: int) -> dict[str, Callable[[gradflow.LossFunction], Solver]]:
    """Return what makes the solvers for k pairs, by name."""
    *few, default = NCV[k]
    solvers: dict[str, Callable[[gradflow.LossFunction], Solver]] = {
        "gradflow": lambda loss: Service(loss, k),
        "gradflow, cold": lambda loss: Service(loss, k, warm=False),
    }
    for ncv in few:
        solvers[f"ARPACK warm, ncv {ncv}"] = lambda loss, ncv=ncv: Arpack(loss, k, ncv)  # type: ignore[misc]
    solvers |= {
        f"ARPACK warm, ncv {default} (default)": lambda loss: Arpack(loss, k, default),
        f"ARPACK cold, ncv {default}": lambda loss: Arpack(loss, k, default, warm=False),
        "LOBPCG warm": lambda loss: Service(loss, k, "lobpcg"),
        "hessian-eigenthings' Lanczos, cold": lambda loss: HessianEigenthings(loss, k),
    }
    if k == ALL:
        solvers |= {
            "LOBPCG cold": lambda loss: Service(loss, k, "lobpcg", warm=False),
            "Stable-Solvers' power iteration, warm": lambda loss: StableSolvers(loss, k),
            "curvlinops + ARPACK, cold": lambda loss: Curvlinops(loss, k),
        }
    return solvers


@dataclass
class Trajectory:
    """Gradient descent, and the first steps of its windows.

    `held_out` says that the eigensolver was never tuned on it.
    """

    loss: gradflow.LossFunction
    lr: float
    windows: tuple[int, ...]
    held_out: bool = False


def trajectories(directory: str | None) -> dict[str, Trajectory]:
    """Return the trajectories by name."""
    digits, _, _ = gradflow.problems.load("digits", "fc-tanh", "mse")
    return {
        "digits, fc-tanh, mse": Trajectory(digits, 0.3, (0, 200, 1000)),
        "CIFAR-10, fc-tanh, mse": Trajectory(
            cifar(lambda: fc_tanh(100), 500, "mse", directory), 0.01, (0, 200, 1000)
        ),
        "CIFAR-10, cnn-tanh, ce": Trajectory(cifar(cnn_tanh, 100, "ce", directory), 0.02, (0, 200, 600)),
        "sorting, transformer, ce": Trajectory(transformer(directory)[0], 0.3, (0, 200, 600), held_out=True),
        "CIFAR-10, resnet-gn, ce": Trajectory(
            cifar(resnet, 100, "ce", directory), 0.03, (0, 200), held_out=True
        ),
        "digits, fc-relu, mse": Trajectory(relu(directory)[0], 0.3, (0, 200, 1000), held_out=True),
    }


def residual(linearization: Any, vectors: torch.Tensor) -> float:
    """Measure max ‖Hv − λv‖/max|λ| with λ the Rayleigh quotients."""
    V = torch.linalg.qr(vectors.double())[0].to(vectors)
    HV = linearization.hvp(V)
    λ = (V * HV).sum(0)
    return float((HV - λ * V).norm(dim=0).max() / λ.abs().max())


#: Products, residual and seconds of a solver at each point that counts.
Seen = dict[str, list[tuple[int, float, float]]]


def measure(trajectory: Trajectory) -> dict[int, Seen]:
    """Run every solver at every point, interleaved, for every number of pairs."""
    loss, theta = trajectory.loss, trajectory.loss.parameters()
    makers = {k: solvers_of(k) for k in NCV}
    seen: dict[int, Seen] = {k: {name: [] for name in makers[k]} for k in NCV}
    solvers: dict[int, dict[str, Solver]] = {}
    for step in range(trajectory.windows[-1] + SPACING * POINTS):
        begun = [w for w in trajectory.windows if w <= step < w + SPACING * POINTS]
        if begun and (step - begun[0]) % SPACING == 0:
            if step == begun[0]:
                solvers = {k: {name: make(loss) for name, make in makers[k].items()} for k in NCV}
            for k in NCV:
                for name, solve in solvers[k].items():
                    point = loss.linearize(theta)
                    found = solve(point)
                    if step >= begun[0] + 2 * SPACING:
                        row = (found.n_products, residual(point, found.vectors), found.seconds)
                        seen[k][name].append(row)
        theta = theta - trajectory.lr * loss.gradient(theta)[1]
    return seen


def table(trajectory: Trajectory, seen: Seen) -> list[dict[str, object]]:
    """Return the rows of a trajectory: mean products of a point by window."""
    rows: list[dict[str, object]] = []
    per_window = POINTS - 2
    for name, found in seen.items():
        products = [f[0] for f in found]
        means = [np.mean(products[i : i + per_window]) for i in range(0, len(products), per_window)]
        rows.append(
            {"solver": name}
            | {
                f"steps {w}–{w + SPACING * POINTS}": f"{mean:.1f}"
                for w, mean in zip(trajectory.windows, means, strict=True)
            }
            | {
                "worst residual": f"{max(f[1] for f in found):.0e}",
                "seconds a point": f"{median([f[2] for f in found]):.3f}",
            }
        )
    return rows


def summary(k: int, parts: dict[str, list[Seen]]) -> list[dict[str, object]]:
    """Return the mean products of a point over groups of trajectories, and over those of the best in its kind."""
    rows: dict[str, dict[str, object]] = {name: {"solver": name} for name in solvers_of(k)}
    for group, found in parts.items():
        means = {name: np.mean([f[0] for seen in found for f in seen[name]]) for name in rows}
        warm = min(mean for name, mean in means.items() if name.startswith("ARPACK warm"))
        cold = min(
            mean for name, mean in means.items() if "Lanczos" in name or name.startswith("ARPACK cold")
        )
        for name, mean in means.items():
            rows[name][f"{group}: products a point"] = f"{mean:.1f}"
            rows[name][f"{group}: over ARPACK's best, warm"] = f"{mean / warm:.2f}"
            rows[name][f"{group}: over the best Lanczos, cold"] = f"{mean / cold:.2f}"
    return list(rows.values())


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sections: dict[str, list[dict[str, object]]] = {}
    groups: dict[int, dict[str, list[Seen]]] = {k: {"tuned on": [], "held out": []} for k in NCV}
    for title, trajectory in trajectories(args.data).items():
        print(title, flush=True)
        for k, seen in measure(trajectory).items():
            groups[k]["held out" if trajectory.held_out else "tuned on"].append(seen)
            sections[f"Top {k}, {title}: products a point"] = table(trajectory, seen)
    totals = {f"Top {k}: over all points": summary(k, parts) for k, parts in groups.items()}
    notes = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    publish("eigensolver", args.out, "Eigensolvers", totals | sections, notes)


if __name__ == "__main__":
    main()
