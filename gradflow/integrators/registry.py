"""The methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer

from gradflow.errors import InvalidTypeError, UnknownNameError, UnknownOptionError, suggest
from gradflow.integrators.adaptive_gd import AdaptiveGD
from gradflow.integrators.auto import Auto
from gradflow.integrators.base import Integrator
from gradflow.integrators.euler import Euler
from gradflow.integrators.expeuler import ExponentialEuler
from gradflow.integrators.exprb import Exprb32, Exprb43
from gradflow.integrators.foreign.scipy_solvers import scipy_methods
from gradflow.integrators.foreign.torchdiffeq_solvers import torchdiffeq_methods
from gradflow.integrators.optimizers.registry import method_of, torch_methods
from gradflow.integrators.rk4 import RK4
from gradflow.integrators.rkc import RKC

#: Every method by name. ``euler`` is an alias of ``gd``.
METHODS: dict[str, type[Integrator]] = {
    "auto": Auto,
    "gd": Euler,
    "euler": Euler,
    "adaptive-gd": AdaptiveGD,
    "rk4": RK4,
    "expeuler": ExponentialEuler,
    "rkc": RKC,
    "exprb32": Exprb32,
    "exprb43": Exprb43,
    **torch_methods(),
    **torchdiffeq_methods(),
    **scipy_methods(),
}


def make_integrator(
    method: str | Integrator | type[Optimizer], options: Mapping[str, Any], also: Iterable[str] = ()
) -> Integrator:
    """Make the integrator of a name with its options; an instance is returned as it is.

    Parameters
    ----------
    method : str, Integrator, or class of optimisers
    options : mapping
        By name.
    also : iterable of str
        Keywords of the caller's, to suggest where an unknown option looks like one of them.

    Returns
    -------
    Integrator

    Raises
    ------
    UnknownNameError, UnknownOptionError
        The message lists what exists.
    """
    if isinstance(method, Integrator):
        if options:
            raise UnknownOptionError(
                f"method is an integrator already, so it takes no options; got {', '.join(sorted(options))}. "
                "Pass them to its class."
            )
        return method
    given: object = method
    if isinstance(given, type) and issubclass(given, Integrator):
        raise InvalidTypeError(f"Expected an integrator as an instance, got the class: {given.__name__}(…).")
    if isinstance(given, Optimizer):
        raise InvalidTypeError(
            f"Expected an optimiser as its class, got an instance: pass {type(given).__name__}, and "
            "its options as keywords."
        )
    cls: type[Integrator]
    if isinstance(given, type) and issubclass(given, Optimizer):
        cls = method_of(given)
        method = cls.name
    elif not isinstance(method, str):
        raise InvalidTypeError(
            f"Expected method as a name, an integrator, or a class of optimisers, got {type(method).__name__}."
        )
    elif method not in METHODS:
        raise UnknownNameError(f"No method {method!r}; {suggest(method, METHODS)}")
    else:
        cls = METHODS[method]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in options:
        if name not in fields:
            raise UnknownOptionError(
                f"Method {method!r} has no option {name!r}; {suggest(name, fields, also)}"
            )
    required = [
        n
        for n, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if n not in options
    ]
    if required:
        raise InvalidTypeError(f"Method {method!r} needs {', '.join(required)}: pass {required[0]}=…")
    return cls(**options)
