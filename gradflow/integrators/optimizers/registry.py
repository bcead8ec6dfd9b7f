"""The optimisers by name: what of each is known beyond how to call it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradflow.checks import check_number
from gradflow.integrators.base import Integrator
from gradflow.integrators.optimizers.adapter import Memory, TorchOptimizer
from gradflow.integrators.step_size import FixedStep
from gradflow.optim import ESGD, ElraOptimizer

#: Arguments of optimisers that don't say what is computed, or that would climb.
_NOT_OPTIONS = {"self", "params", "foreach", "fused", "capturable", "differentiable", "maximize"}
#: Of ours: other names, what is deprecated, and Python objects.
_NOT_OPTIONS |= {"nu", "seed", "generator", "model", "mode", "dummy", "compat"}
#: What options mean that many optimisers have; the others say "as in" their class.
_DOCS = {
    "lr": "Learning rate η.",
    "momentum": "β in [0, 1).",
    "betas": "Decay rates β₁, β₂ of the averages of gradients and of their squares.",
    "eps": "ε that is added to denominators.",
    "weight_decay": "Strength of the weight decay.",
    "dampening": "τ: the gradient enters the momentum with 1 − τ; equal to `momentum` for an average.",
    "nesterov": "Take Nesterov's momentum.",
    "classes": "Number of classes; from 2 on elra takes losses to be noisy.",
    "noise_free": "Whether losses have no noise; by default if there are no classes.",
    "accumulator": "ema or max: how squared curvatures are kept.",
    "alpha": "Decay rate of an average; of squared gradients for rmsprop.",
}


@dataclass(frozen=True)
class _SGD(TorchOptimizer):
    """θ ← θ − ηv, v ← βv + (1 − τ) ∇L(θ): a step counts as η (1 − τ)/(1 − β) of flow time."""

    threshold_formula: ClassVar[str | None] = "(2+2β)/η"

    @property
    def _options(self) -> tuple[float, float, float, bool]:
        """Return η, β, τ, and whether the momentum is Nesterov's."""
        own = self.own
        return own["lr"], own.get("momentum", 0.0), own.get("dampening", 0.0), own.get("nesterov", False)

    @property
    def time_per_lr(self) -> float:
        """(1 − τ)/(1 − β)."""
        _, β, τ, _ = self._options
        return (1 - τ) / (1 - β) if β else 1.0

    @property
    def time_definition(self) -> str:
        """The flow's, unless something else than the gradient moves θ."""
        moved = self.own.get("weight_decay", 0.0) or self.clip_norm or self.clip_value
        return super().time_definition if moved else "flow"

    @property
    def stability_threshold(self) -> float | None:
        """(2 + 2β)/(η(1 − τ)), and with Nesterov's momentum over 1 + 2β."""
        η, β, τ, nesterov = self._options
        if self.scheduler is not None:
            return None
        return (2 + 2 * β) / (η * (1 - (τ if β else 0.0)) * (1 + 2 * β if nesterov else 1.0))


@dataclass(frozen=True)
class Polyak(_SGD):
    """Gradient descent with Polyak's momentum: v ← βv + ∇L(θ), θ ← θ − ηv.

    ``torch.optim.SGD`` with momentum. Where the gradient changes slowly, v is 1/(1 − β) times as long as it, so a
    step counts as η/(1 − β) of flow time. Stable while λ₁ < (2 + 2β)/η (Cohen et al. 2021).

    Parameters
    ----------
    lr : float
        Learning rate η.
    momentum : float, default 0.9
        β in [0, 1).
    """

    lr: float
    momentum: float = 0.9

    name: ClassVar[str] = "polyak"
    optimizer: ClassVar[type[Optimizer]] = torch.optim.SGD
    nesterov: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, least=0, below=1)
        super().__post_init__()

    @property
    def own(self) -> dict[str, Any]:
        """What SGD takes; it has no Nesterov's momentum of 0, which is none."""
        return {"lr": self.lr, "momentum": self.momentum, "nesterov": self.nesterov and self.momentum > 0}


@dataclass(frozen=True)
class Nesterov(Polyak):
    """Gradient descent with Nesterov's momentum: v ← βv + ∇L(θ), θ ← θ − η(∇L(θ) + βv).

    ``torch.optim.SGD`` with ``nesterov=True``; time as for ``polyak``. Stable while λ₁ < (2 + 2β)/(η(1 + 2β))
    (Cohen et al. 2021).
    """

    name: ClassVar[str] = "nesterov"
    nesterov: ClassVar[bool] = True
    threshold_formula: ClassVar[str | None] = "(2+2β)/(η(1+2β))"


@dataclass(frozen=True)
class _Preconditioned(TorchOptimizer):
    """An update P⁻¹ times a momentum of the gradient, P diagonal.

    Its edge of stability is where λ₁ of P^(−1/2) H P^(−1/2) reaches the threshold (Cohen et al. 2022,
    arXiv:2207.14484).
    """

    preconditions: ClassVar[bool] = True

    def preconditioner(self, state: Memory) -> Tensor | None:
        """Return the diagonal of P."""
        parts = self._diagonals(state) if state.n_steps else []
        return torch.cat([part.detach().reshape(-1) for part in parts]) if parts else None

    def _diagonals(self, state: Memory) -> list[Tensor]:
        """Return it by parameter, from the state of each and the group's options; empty where it isn't known."""
        return [self._diagonal(s, state.saved["group"]) for s in state.saved["state"].values()]

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """Return it for one parameter."""
        raise NotImplementedError

    @property
    def stability_threshold(self) -> float | None:
        """As :meth:`_threshold`, where the learning rate stays."""
        return self._threshold(self.own) if self.scheduler is None else None

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """2/η, without momentum."""
        return float(2 / own["lr"])


@dataclass(frozen=True)
class _RMSprop(_Preconditioned):
    threshold_formula: ClassVar[str | None] = "2(1+β)/η"

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """√v + ε, v the average of squares, about the mean if centred."""
        v = s["square_avg"] - s["grad_avg"] ** 2 if group["centered"] else s["square_avg"]
        return v.sqrt() + group["eps"]

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """2(1 + β)/η."""
        return float(2 * (1 + own["momentum"]) / own["lr"])


@dataclass(frozen=True)
class _Adam(_Preconditioned):
    threshold_formula: ClassVar[str | None] = "(2+2β₁)/((1−β₁)η)"

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """(1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε)."""
        β1, β2 = group["betas"]
        t = float(s["step"])
        v = s["max_exp_avg_sq"] if group["amsgrad"] else s["exp_avg_sq"]
        return (1 - β1**t) * (v.sqrt() / math.sqrt(1 - β2**t) + group["eps"])

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """(2 + 2β₁)/((1 − β₁) η): the momentum is an average."""
        β1 = own["betas"][0]
        return float((2 + 2 * β1) / ((1 - β1) * own["lr"]))


@dataclass(frozen=True)
class _Adamax(_Adam):
    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """(1 − β₁ᵗ) u, u the decaying maximum of |g| + ε."""
        diagonal: Tensor = (1 - group["betas"][0] ** float(s["step"])) * s["exp_inf"]
        return diagonal


@dataclass(frozen=True)
class _Adagrad(_Preconditioned):
    threshold_formula: ClassVar[str | None] = "2/η"

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """(1 + (t − 1) δ)(√(Σg²) + ε), δ the decay of the learning rate."""
        decay = 1 + (float(s["step"]) - 1) * group["lr_decay"]
        return decay * (s["sum"].sqrt() + group["eps"])


@dataclass(frozen=True)
class _ESGD(_Preconditioned):
    threshold_formula: ClassVar[str | None] = "2(1+β₁)/((1+β₁−2vβ₁)η)"

    @property
    def own(self) -> dict[str, Any]:
        """The probes come from a generator of their own."""
        return super().own | {"seed": self.sample_seed}

    def _diagonals(self, state: Memory) -> list[Tensor]:
        """Return S."""
        state.bench.load(state.saved)
        optimizer = state.bench.optimizer
        assert isinstance(optimizer, ESGD)
        parts = optimizer.preconditioner()
        return [] if any(part is None for part in parts) else [part for part in parts if part is not None]

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """2(1 + β₁)/((1 + β₁ − 2vβ₁) η), v = β₁ unless given."""
        β = own["betas"][0]
        v = β if own["v"] is None else own["v"]
        return float(2 * (1 + β) / ((1 + β - 2 * v * β) * own["lr"]))


@dataclass(frozen=True)
class _ELRA(TorchOptimizer):
    """Finds its own step lengths, and goes back from a step to a loss that isn't finite, which ends other methods."""

    allows_nonfinite: ClassVar[bool] = True

    @property
    def time_definition(self) -> str:
        """The learning rate is that of the first step alone."""
        return "steps"

    @property
    def step_rule(self) -> FixedStep:
        """Every step counts as 1."""
        return FixedStep(1.0)

    @property
    def own(self) -> dict[str, Any]:
        """It counts its statistics in samples."""
        return super().own | ({} if self.batch_size is None else {"batch_size": self.batch_size})


_KNOWN: dict[str, type[TorchOptimizer]] = {
    "SGD": _SGD, "RMSprop": _RMSprop, "Adam": _Adam, "AdamW": _Adam, "Adamax": _Adamax, "Adagrad": _Adagrad,
}  # fmt: skip


def method_of(cls: type[Optimizer], base: type[TorchOptimizer] | None = None) -> type[TorchOptimizer]:
    """Make the method of an optimiser's class: its options, and ours of :class:`TorchOptimizer`.

    Parameters
    ----------
    cls : type
        A class of ``torch.optim``, or of its interface: ``cls(params, …)`` and ``step()``.
    base : type, optional
        What is known of it. Default: what is known of the class of that name in torch.optim.
    """
    if base is None:
        base = (
            _KNOWN.get(cls.__name__, TorchOptimizer)
            if cls.__module__.startswith("torch.optim")
            else TorchOptimizer
        )
    taken = {field.name for field in dataclasses.fields(TorchOptimizer)}
    fields: list[Any] = []
    docs: list[str] = []
    hints = _hints(cls)
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if name in _NOT_OPTIONS | taken or parameter.kind in {
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        }:
            continue
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        fields.append((name, hints.get(name, Any), dataclasses.field(default=default)))
        docs.append(f"{name} : object\n    {_DOCS.get(name, f'As in {cls.__name__}.')}")
    if "lr" in {field[0] for field in fields} and "lr" not in hints:
        hints["lr"] = float
    where = f"``{cls.__module__.removesuffix('.' + cls.__name__.lower())}.{cls.__name__}``"
    doc = f"{where}, run as an integrator.\n\nParameters\n----------\n" + "\n".join(docs) + "\n"
    body = {
        "name": cls.__name__.lower().removesuffix("optimizer"),
        "optimizer": cls,
        "__doc__": doc,
        "__module__": __name__,
    }
    made = dataclasses.make_dataclass(
        f"Method{cls.__name__}", fields, bases=(base,), namespace=body, frozen=True, kw_only=True
    )
    return typing.cast("type[TorchOptimizer]", made)


def _hints(cls: type[Optimizer]) -> dict[str, Any]:
    """Return the types of options, as far as they can be told; a number where a tensor would do as well."""
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):
        return {}
    return {name: float if name == "lr" else hint for name, hint in hints.items()}


def torch_methods() -> dict[str, type[Integrator]]:
    """Make a method of every class of torch.optim that takes dense gradients."""
    classes = [
        cls
        for name in dir(torch.optim)
        if isinstance(cls := getattr(torch.optim, name), type)
        if issubclass(cls, Optimizer) and cls not in {Optimizer, torch.optim.SparseAdam}
    ]
    ours: dict[str, type[Integrator]] = {
        "polyak": Polyak,
        "nesterov": Nesterov,
        "esgd": method_of(ESGD, _ESGD),
        "elra": method_of(ElraOptimizer, _ELRA),
    }
    return ours | {cls.__name__.lower(): method_of(cls) for cls in classes}
