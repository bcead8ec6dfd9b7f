"""The methods by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from torch.optim import Optimizer

from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, UnknownOptionError, suggest
from gradflow.flows import Flow, GradientFlow
from gradflow.flows.base import Needs
from gradflow.integrators.adaptive_gd import AdaptiveGD
from gradflow.integrators.auto import Auto
from gradflow.integrators.base import Integrator
from gradflow.integrators.central import CentralEuler, CentralProjected
from gradflow.integrators.dop853 import DormandPrince853
from gradflow.integrators.dopri8 import PrinceDormand8
from gradflow.integrators.euler import Euler
from gradflow.integrators.expeuler import ExponentialEuler
from gradflow.integrators.exprb import Exprb32, Exprb43, Exprb54
from gradflow.integrators.foreign.scipy_solvers import scipy_methods
from gradflow.integrators.low_order import Heun2, Heun3, Midpoint
from gradflow.integrators.optimizers.registry import method_of, torch_methods
from gradflow.integrators.pairs import AdaptiveHeun, BogackiShampine, DormandPrince5, Fehlberg2, Tsitouras5
from gradflow.integrators.rk4 import RK4
from gradflow.integrators.rkc import RKC
from gradflow.options import build, option_names

#: Solvers of torchdiffeq that step in torch; it wraps SciPy's LSODA besides, as its ``scipy_solver``.
_TORCHDIFFEQ = (
    "adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2", "euler", "midpoint", "heun2", "heun3", "rk4",
    "explicit_adams", "implicit_adams", "fixed_adams",
)  # fmt: skip


class _Methods(Mapping[str, type[Integrator]]):
    """Classes of methods by name; those of torchdiffeq are made, and it is imported, when they are asked for."""

    def __init__(self, ours: Mapping[str, type[Integrator]], torchdiffeq: Mapping[str, str]) -> None:
        self._made = dict(ours)
        self._torchdiffeq = dict(torchdiffeq)

    def __getitem__(self, name: str) -> type[Integrator]:
        if name in self._made:
            return self._made[name]
        solver = self._torchdiffeq[name]
        try:
            from gradflow.integrators.foreign.torchdiffeq_solvers import torchdiffeq_method
        except ImportError as error:
            raise InvalidInputError(
                f"Method {name!r} is torchdiffeq's, of which this version can't be used: {error}. Install the version "
                "of constraints.txt, or use a method of gradflow's own."
            ) from error
        made = self._made.get(f"torchdiffeq:{solver}") or torchdiffeq_method(solver)
        self._made[name] = self._made[f"torchdiffeq:{solver}"] = made
        return made

    def __iter__(self) -> Iterator[str]:
        return iter({**self._made, **self._torchdiffeq})

    def __len__(self) -> int:
        return len({**self._made, **self._torchdiffeq})

    def __contains__(self, name: object) -> bool:
        return name in self._made or name in self._torchdiffeq


#: Every method by name. ``euler`` is an alias of ``gd``.
METHODS: Mapping[str, type[Integrator]] = _Methods(
    {
        "auto": Auto,
        "gd": Euler,
        "euler": Euler,
        "adaptive-gd": AdaptiveGD,
        "rk4": RK4,
        "midpoint": Midpoint,
        "heun2": Heun2,
        "heun3": Heun3,
        "adaptive_heun": AdaptiveHeun,
        "fehlberg2": Fehlberg2,
        "bosh3": BogackiShampine,
        "dopri5": DormandPrince5,
        "tsit5": Tsitouras5,
        "dopri8": PrinceDormand8,
        "dop853": DormandPrince853,
        "expeuler": ExponentialEuler,
        "rkc": RKC,
        "exprb32": Exprb32,
        "exprb43": Exprb43,
        "exprb54": Exprb54,
        "central-projected": CentralProjected,
        "central-euler": CentralEuler,
        **torch_methods(),
        **scipy_methods(),
    },
    {f"torchdiffeq:{name}": name for name in _TORCHDIFFEQ}
    | {name: name for name in ("explicit_adams", "implicit_adams")},
)


#: A method as a user gives it.
MethodLike = str | Integrator | type[Optimizer]


def method_class(method: MethodLike) -> type[Integrator]:
    """Return the class of a method: by its name, that of an instance, or that made of a class of optimisers.

    Raises
    ------
    UnknownNameError, InvalidTypeError
        The message lists what exists.
    """
    given: object = method
    if isinstance(given, Integrator):
        return type(given)
    if isinstance(given, type) and issubclass(given, Integrator):
        raise InvalidTypeError(f"Expected an integrator as an instance, got the class: {given.__name__}(…).")
    if isinstance(given, Optimizer):
        raise InvalidTypeError(
            f"Expected an optimiser as its class, got an instance: pass {type(given).__name__}, and "
            "its options as keywords."
        )
    if isinstance(given, type) and issubclass(given, Optimizer):
        return method_of(given)
    if not isinstance(given, str):
        raise InvalidTypeError(
            f"Expected method as a name, an integrator, or a class of optimisers, got {type(given).__name__}."
        )
    if given not in METHODS:
        raise UnknownNameError(f"No method {given!r}; {suggest(given, METHODS)}")
    return METHODS[given]


def options_hint(name: str) -> str | None:
    """Return where the option `options` of a method is now: plain names were torchdiffeq's methods before."""
    reference = f"torchdiffeq:{name}"
    if reference not in METHODS or "options" in option_names(METHODS[name]):
        return None
    return (
        f"options are those of torchdiffeq's solver, and {name!r} is gradflow's own. Leave them out, or use "
        f"method={reference!r}, which takes them."
    )


def make_integrator(method: MethodLike, options: Mapping[str, Any], also: Iterable[str] = ()) -> Integrator:
    """Make the integrator of a name with its options; an instance is returned as it is.

    Parameters
    ----------
    method : str, Integrator, or class of optimisers
    options : mapping
        By name.
    also : iterable of str
        Keywords of the caller's, to suggest where an unknown option looks like one of them.

    Raises
    ------
    UnknownNameError, UnknownOptionError, InvalidTypeError
        The message lists what exists.
    """
    cls = method_class(method)
    if not isinstance(method, Integrator):
        name = method if isinstance(method, str) else cls.name
        if "options" in options and (hint := options_hint(name)):
            raise UnknownOptionError(hint)
        return build(cls, f"Method {name!r}", options, also)
    if options:
        raise UnknownOptionError(
            f"method is an integrator already, so it takes no options; got {', '.join(sorted(options))}. "
            "Pass them to its class."
        )
    return method


def check_needs(integrator: Integrator, flow: Flow) -> None:
    """Refuse a method that needs of the flow what it hasn't.

    Raises
    ------
    InvalidInputError
        The message names methods that would do.
    """
    ranks = list(get_args(Needs))
    needs, gives = integrator.needs, flow.gives
    made_for = set(flow.schemes.values())
    if made_for and integrator.name not in made_for:
        raise InvalidInputError(
            f"The flow {flow.name!r} keeps to a constraint, which {integrator.name} knows nothing of. Leave the method "
            f"out, or use one that was made for it: {', '.join(flow.schemes.values())}."
        )
    if integrator.only_for is not None and flow.name != integrator.only_for:
        raise InvalidInputError(
            f"{integrator.name} was made for the flow {integrator.only_for!r}, got flow={flow.name!r}. Use another "
            f"method, such as auto, or flow={integrator.only_for!r}."
        )
    if needs is None:
        if type(flow) is not GradientFlow:
            raise InvalidInputError(
                f"{integrator.name} is an optimiser, which descends the loss itself and follows no flow; got "
                f"flow={flow.name!r}. Leave the flow out, or use a method for flows: rkc, rk4, gd."
            )
    elif ranks.index(gives) < ranks.index(needs):
        has = "no Jacobian" if gives == "velocity" else "a Jacobian that isn't declared symmetric"
        would = "rkc, rk4, dopri5" if gives == "velocity" else "scipy:Radau, rkc, rk4, dopri5"
        remedy = "give it a method jacobian" if gives == "velocity" else "say symmetric = True if it is"
        raise InvalidInputError(
            f"{integrator.name} needs a flow with a {needs.replace('j', 'J')}, and {flow.name!r} has {has}. Use "
            f"{would}; or, in a subclass of gradflow.Flow, {remedy}."
        )
