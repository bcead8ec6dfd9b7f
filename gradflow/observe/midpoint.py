"""What is measured at the second-order midpoints of the iterates of a discrete method."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradflow.driver import Snapshot
from gradflow.flows import Cost, Field
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.observe.quantities import gradient_norm
from gradflow.spectrum import SpectrumService
from gradflow.variable import Variable


class MidpointPoint(ObservedPoint):
    """The second-order midpoint w*_t = (w_{t−1} + 2 w_t + w_{t+1})/4 of three iterates, with time and step of w_t.

    An oscillation of period 2 is averaged out there, so that it is what the centre of a flow is compared with.

    Attributes
    ----------
    oscillation : Tensor, shape (P,), float64
        w_t − w*_t.
    """

    def __init__(
        self, field: Field, snapshot: Snapshot, service: SpectrumService, oscillation: Tensor
    ) -> None:
        super().__init__(field, snapshot, service)
        self._oscillation = oscillation

    @property
    def oscillation(self) -> Tensor:
        """w_t − w*_t, shape (P,), float64."""
        return self._oscillation.clone()


class Midpoints:
    """The last iterates of a run, and the record that waits for the next one to have its midpoint.

    Parameters
    ----------
    field : Field
        In which midpoints are evaluated.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self._service = SpectrumService(field.loss)
        self._before: Tensor | None = None  # w_{t−1}
        self._present: Tensor | None = None  # w_t
        self._waiting: tuple[float, int, list[str], Tensor | None] | None = None

    def wait(self, snapshot: Snapshot, due: Collection[str]) -> None:
        """Take note of a record at the present iterate, and of the observers that are due at its midpoint."""
        if self._present is None:
            self._present = snapshot.z.detach().clone()
        if not due:
            return
        diagonal = snapshot.preconditioner()
        diagonal = None if diagonal is None else diagonal.clone()
        self._waiting = snapshot.t, snapshot.step, sorted(due), diagonal

    def follow(self, z: Tensor) -> tuple[MidpointPoint, list[str]] | None:
        """Take note of the next iterate; return the midpoint of the three, and what is due there, if there is."""
        waiting, self._waiting = self._waiting, None
        before, present, self._before = self._before, self._present, self._present
        self._present = z.detach().clone()
        if waiting is None or before is None or present is None:
            return None
        t, step, due, diagonal = waiting
        middle = (2 * present.to(torch.float64)).add_(before).add_(self._present).div_(4)
        oscillation = present - middle
        snapshot = Snapshot(
            t, step, middle.to(z.dtype), None, math.nan, math.nan, Cost(), math.nan, lambda: diagonal
        )
        return MidpointPoint(self._field, snapshot, self._service, oscillation), due

    def state_dict(self) -> dict[str, Any]:
        """Return the iterates, and what the record made last waits for."""
        return {
            "before": self._before,
            "present": self._present,
            "waiting": self._waiting,
            "service": self._service.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._before, self._present, self._waiting = (
            state[name] for name in ("before", "present", "waiting")
        )
        self._service.load_state_dict(state["service"])


class AtMidpoint(Observer):
    """What another observer measures, at the midpoint, under the names midpoint_….

    Parameters
    ----------
    observer : Observer
        Its field, if it has one, is its own.
    """

    at_midpoint = True

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.every = observer.every
        self.name = f"midpoint_{observer.name}"  # type: ignore[misc]
        self.variables = {  # type: ignore[misc]
            f"midpoint_{name}": replace(each, long_name=f"{each.long_name}, at the midpoint")
            for name, each in observer.variables.items()
        }

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the midpoint."""
        return {f"midpoint_{name}": value for name, value in self._observer.measure(point).items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the observer."""
        return self._observer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._observer.load_state_dict(state)


class MidpointScalars(Observer):
    """Loss and gradient norm at the midpoint, and the oscillation's variance: every record but the ends has them."""

    at_midpoint = True
    name = "midpoint"
    variables: ClassVar[Mapping[str, Variable]] = {
        "midpoint_train_loss": Variable(long_name="training loss, at the midpoint"),
        "midpoint_gradient_norm": Variable(
            long_name="2-norm of the gradient of the training loss, at the midpoint"
        ),
        "oscillation_variance": Variable(long_name="squared distance of the parameters from the midpoint"),
    }

    def measure(self, point: MidpointPoint) -> dict[str, Any]:  # type: ignore[override]
        """Measure at the midpoint."""
        return {
            "midpoint_train_loss": point.loss,
            "midpoint_gradient_norm": gradient_norm(point),
            "oscillation_variance": (point.oscillation**2).sum(),
        }


@dataclass(eq=False)
class OscillationAlong(Observer):
    """The squares of the oscillation's coordinates along the top eigenvectors of the Hessian at the midpoint.

    Parameters
    ----------
    field : Field
        That of the eigenvalues at the midpoint, which are measured before: their vectors are taken as they are.
    n : int
    """

    field: Field
    n: int

    at_midpoint = True
    name = "oscillation"
    variables: ClassVar[Mapping[str, Variable]] = {
        "oscillation_along": Variable(
            ("eig",), "squared distance of the parameters from the midpoint along each top eigenvector there"
        )
    }

    def measure(self, point: MidpointPoint) -> dict[str, Any]:  # type: ignore[override]
        """Measure at the midpoint."""
        pairs = point.of(self.field).top_by(self.field.spectrum, self.n, math.inf)
        return {"oscillation_along": (pairs.vectors.T.double() @ point.oscillation) ** 2}
