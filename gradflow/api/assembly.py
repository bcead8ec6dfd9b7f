"""What a run is made of beside its driver: observers, record, and what the file says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradflow.driver import Outcome, Stepper
from gradflow.flows import Flow
from gradflow.integrators import ErrorControl, Integrator
from gradflow.observe import ErrorEstimate, Observers, RandomProjection
from gradflow.plain import to_plain
from gradflow.record import FileRecord, Layout, MemoryRecord, Record


def make_record(
    out: str | os.PathLike[str] | None,
    observers: Observers,
    theta: Tensor,
    attrs: Mapping[str, Any],
    identity: Mapping[str, str],
    *,
    overwrite: bool,
    resume: bool,
    anew: bool,
    sync_every: float,
    checkpoint_every: float,
) -> Record:
    """Make what keeps the records; their first one completes the shape of the file."""
    rows = {name: row for name, (row, _) in observers.coordinates.items()}
    layout = Layout(observers.variables, observers.sizes, _dtype(theta), rows)
    if out is None:
        return MemoryRecord(layout, attrs)
    return FileRecord(
        out,
        layout,
        attrs,
        static_variables(observers, theta),
        identity,
        overwrite=overwrite,
        resume=resume,
        anew=anew,
        sync_every=sync_every,
        checkpoint_every=checkpoint_every,
    )


def static_variables(observers: Observers, theta: Tensor) -> dict[str, np.ndarray]:
    """Return what of a file is known at its start and has no time."""
    coordinates = {name: np.asarray(values) for name, (_, values) in observers.coordinates.items()}
    return {"params_initial": to_numpy(theta), **coordinates}


class Recorder:
    """Observers and a record, as the driver wants them."""

    def __init__(self, observers: Observers, record: Record) -> None:
        self._observers = observers
        self._record = record
        self.measure = observers.measure
        self.quantity = observers.quantity
        self.append = record.append
        self.amend = record.amend
        self.flush = record.flush

    def follow(self, z: Tensor) -> None:
        """Add to the last record what takes the step after it."""
        values = self._observers.follow(z)
        if values:
            self._record.amend(values)

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Bring records to safety, and the state of run and observers; the point that they saw last is let go."""
        self._observers.forget()
        self._record.sync(
            lambda: to_plain({"run": state(), "observers": self._observers.state_dict()}), now=now
        )


def run_attributes(
    flow: Flow, integrator: Integrator, theta: Tensor, n_projections: int, projection_seed: int
) -> dict[str, Any]:
    """Return the attributes of a run that are known at its start."""
    return {
        "flow": flow.name,
        "method": integrator.name,
        "time_definition": integrator.time_definition if integrator.needs is None else flow.time_definition,
        "device": str(theta.device),
        "device_name": torch.cuda.get_device_name(theta.device) if theta.is_cuda else "cpu",
        "dtype": _dtype(theta),
        "n_parameters": theta.numel(),
        "stability_threshold": integrator.stability_threshold,
        "stability_threshold_formula": integrator.threshold_formula,
        "stability_threshold_of": _bounded_by_threshold(integrator),
        "error_norm": _error_norm(integrator),
        "projection_kind": RandomProjection.kind if n_projections else None,
        "projection_seed": projection_seed if n_projections else None,
    }


def _error_norm(integrator: Integrator) -> str | None:
    """Return what the tolerances are in terms of: ours, those of a library's solver, or None without error control."""
    return "l2" if isinstance(integrator.step_rule, ErrorControl) else integrator.error_norm


def _bounded_by_threshold(integrator: Integrator) -> str | None:
    """Return the variable of the file that the stability threshold bounds."""
    if integrator.stability_threshold is None:
        return None
    return "effective_eigenvalue" if integrator.preconditions else "eigenvalue"


def end_attributes(
    outcome: Outcome, stepper: Stepper, observers: Observers, estimate: ErrorEstimate | None = None
) -> dict[str, Any]:
    """Return the attributes of a run that are known at its end."""
    third, looked = stepper.field.flow.third_derivatives, stepper.field.looked
    return {
        "status": outcome.status.code,
        "message": outcome.message,
        "success": outcome.status.success,
        "n_steps": stepper.n_steps,
        "n_rejected_steps": stepper.n_rejected,
        "n_loss_increases": stepper.n_loss_increases,
        "n_gradients_observing": observers.n_gradients + looked.n_gradients,
        "n_hvps_observing": observers.n_hvps + looked.n_hvps,
        "n_third_observing": observers.n_third + looked.n_third if third else None,
        "error_estimate_message": None if estimate is None else estimate.advice,
        **stepper.remarks(),
    }


def to_numpy(theta: Tensor) -> np.ndarray:
    """Return a tensor as an array, sharing memory on the CPU."""
    return theta.detach().cpu().numpy()


def _dtype(theta: Tensor) -> str:
    return str(theta.dtype).removeprefix("torch.")
