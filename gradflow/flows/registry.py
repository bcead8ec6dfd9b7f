"""The flows by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gradflow.errors import InvalidTypeError, UnknownNameError, UnknownOptionError, suggest
from gradflow.flows.base import Flow
from gradflow.flows.central import CentralFlow
from gradflow.flows.edge import EdgeFlow
from gradflow.flows.function import FunctionFlow
from gradflow.flows.gradient import GradientFlow
from gradflow.flows.modified import ModifiedFlow
from gradflow.flows.period2 import PeriodTwoFlow
from gradflow.flows.point import Point
from gradflow.flows.principal import PrincipalFlow
from gradflow.flows.rod import RodFlow
from gradflow.options import build

#: Every flow that has a name.
FLOWS: dict[str, type[Flow]] = {
    cls.name: cls
    for cls in (
        GradientFlow,
        ModifiedFlow,
        PrincipalFlow,
        CentralFlow,
        EdgeFlow,
        RodFlow,
        PeriodTwoFlow,
    )
}

#: A flow as a user gives it.
FlowLike = str | Flow | Callable[[Point], Tensor]


def flow_class(flow: FlowLike) -> type[Flow]:
    """Return the class of a flow: by its name, that of an instance, or that of functions.

    Raises
    ------
    UnknownNameError, InvalidTypeError
        The message lists what exists.
    """
    if isinstance(flow, str):
        if flow not in FLOWS:
            raise UnknownNameError(f"No flow {flow!r}; {suggest(flow, FLOWS)}")
        return FLOWS[flow]
    if isinstance(flow, Flow):
        return type(flow)
    if isinstance(flow, type) and issubclass(flow, Flow):
        raise InvalidTypeError(f"Expected a flow as an instance, got the class: {flow.__name__}(…).")
    if callable(flow):
        return FunctionFlow
    raise InvalidTypeError(
        f"Expected flow as a name, a gradflow.Flow, or a function of the point, got {type(flow).__name__}."
    )


def make_flow(flow: FlowLike, options: Mapping[str, Any]) -> Flow:
    """Make the flow of a name with its options, or of a function; an instance is returned as it is."""
    cls = flow_class(flow)
    if isinstance(flow, str):
        return build(cls, f"Flow {flow!r}", options)
    if options:
        raise UnknownOptionError(
            f"flow is made already, so it takes no options; got {', '.join(sorted(options))}. Pass them to its class."
        )
    return flow if isinstance(flow, Flow) else FunctionFlow(flow)
