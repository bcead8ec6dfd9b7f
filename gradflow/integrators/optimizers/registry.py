"""The optimisers by name, and the method of any class of optimisers."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from typing import Any

import torch
from torch.optim import Optimizer

from gradflow.integrators.base import Integrator
from gradflow.integrators.optimizers.adapter import TorchOptimizer
from gradflow.integrators.optimizers.elra import ELRAMethod
from gradflow.integrators.optimizers.momentum import Nesterov, Polyak, SGDMethod
from gradflow.integrators.optimizers.preconditioned import (
    AdagradMethod,
    AdamaxMethod,
    AdamMethod,
    ESGDMethod,
    RMSpropMethod,
)
from gradflow.optim import ESGD, ElraOptimizer

#: Arguments of optimisers that don't change what is computed, or that would make the loss rise.
_NOT_OPTIONS = {"self", "params", "foreach", "fused", "capturable", "differentiable", "maximize"}
#: Arguments of ESGD and ELRA: other names, arguments without an effect, and Python objects.
_NOT_OPTIONS |= {"nu", "seed", "generator", "model", "mode", "dummy"}
#: The meaning of options that many optimisers have; other options refer to their class.
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
#: Methods with known thresholds and preconditioners, by the class of torch.optim.
_KNOWN: dict[str, type[TorchOptimizer]] = {
    "SGD": SGDMethod,
    "RMSprop": RMSpropMethod,
    "Adam": AdamMethod,
    "AdamW": AdamMethod,
    "Adamax": AdamaxMethod,
    "Adagrad": AdagradMethod,
}


def method_of(cls: type[Optimizer], base: type[TorchOptimizer] | None = None) -> type[TorchOptimizer]:
    """Make the method of an optimiser's class: its options, and ours of :class:`TorchOptimizer`.

    Parameters
    ----------
    cls : type
        A class of ``torch.optim``, or of its interface: ``cls(params, …)`` and ``step()``.
    base : type, optional
        The class of the method, with its threshold and preconditioner. Default: that of the class of this name in
        torch.optim, if it is known.
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
    doc = (
        f"``{_importable(cls)}``, run as an integrator.\n\nParameters\n----------\n" + "\n".join(docs) + "\n"
    )
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


def _importable(cls: type) -> str:
    """Return the shortest name by which a class can be imported."""
    parts = cls.__module__.split(".")
    packages = (".".join(parts[:n]) for n in range(1, len(parts)))
    found = (each for each in packages if vars(sys.modules.get(each, object)).get(cls.__name__) is cls)
    return f"{next(found, cls.__module__)}.{cls.__name__}"


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
        "esgd": method_of(ESGD, ESGDMethod),
        "elra": method_of(ElraOptimizer, ELRAMethod),
    }
    return ours | {cls.__name__.lower(): method_of(cls) for cls in classes}
