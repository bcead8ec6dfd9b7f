"""What a run is made of beside its driver: observers, record, and what the file says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradflow.driver import Outcome, Stepper
from gradflow.flows import Field, Flow
from gradflow.integrators import Integrator
from gradflow.loss import LossFunction
from gradflow.observe import (
    Density,
    EffectiveSpectrum,
    Observer,
    Observers,
    Parameters,
    Projections,
    RandomProjection,
    Scalars,
    Spectrum,
    Test,
)
from gradflow.plain import to_plain
from gradflow.record import FileRecord, Layout, MemoryRecord, Record


def make_observers(
    loss: LossFunction,
    flow_of: Flow,
    spectrum_of: LossFunction,
    test: LossFunction | None,
    groups: Iterable[str],
    n_eigs: int,
    eigs_tol: float,
    density_at: Tensor | None,
    projection: RandomProjection | None,
) -> Observers:
    """Make what measures the groups of quantities; spectra are those of `spectrum_of`."""
    own = Field(loss, flow_of)
    flow = own if spectrum_of is loss else Field(spectrum_of)
    groups = frozenset(groups)
    observers: list[Observer] = [Scalars(loss)]
    if test is not None:
        observers.append(Test(test))
    if n_eigs:
        observers.append(Spectrum(flow, n_eigs, eigs_tol))
    if "effective" in groups:
        observers.append(EffectiveSpectrum(flow, n_eigs, eigs_tol))
    if density_at is not None:
        observers.append(Density(flow, density_at))
    if projection is not None:
        observers.append(Projections(projection))
    if "params" in groups:
        observers.append(Parameters())
    return Observers(own, flow, observers)


def make_record(
    out: str | os.PathLike[str] | None,
    theta: Tensor,
    groups: Iterable[str],
    n_eigs: int,
    density_at: Tensor | None,
    n_projections: int,
    attrs: Mapping[str, Any],
    identity: Mapping[str, str],
    overwrite: bool,
    resume: bool,
    anew: bool,
    sync_every: float,
    checkpoint_every: float,
) -> Record:
    """Make what keeps the records."""
    optional = {
        "eigenvalue": "eigenvalues",
        "eigenvalue_residual": "eigenvalues",
        "effective_eigenvalue": "effective",
        "effective_eigenvalue_residual": "effective",
        "spectral_density": "density",
        "spectral_density_error": "density",
        "x": "density",
        "projection": "projections",
        "theta": "params",
    }
    layout = Layout(
        sizes={
            "eig": n_eigs,
            "x": 0 if density_at is None else len(density_at),
            "proj": n_projections,
            "param": theta.numel(),
        },
        optional=frozenset(v for v, g in optional.items() if g in set(groups)) | {"params", "params_initial"},
        theta_dtype=str(theta.dtype).removeprefix("torch."),
    )
    if out is None:
        return MemoryRecord(layout, attrs)
    return FileRecord(
        out,
        layout,
        attrs,
        static_variables(theta, density_at),
        identity,
        overwrite=overwrite,
        resume=resume,
        anew=anew,
        sync_every=sync_every,
        checkpoint_every=checkpoint_every,
    )


def static_variables(theta: Tensor, density_at: Tensor | None) -> dict[str, np.ndarray]:
    """Return what of a file is known at its start and has no time."""
    grid = {} if density_at is None else {"x": density_at.numpy()}
    return {"params_initial": to_numpy(theta), **grid}


class Recorder:
    """Observers and a record, as the driver wants them."""

    def __init__(self, observers: Observers, record: Record) -> None:
        self._observers = observers
        self._record = record
        self.measure = observers.measure
        self.append = record.append
        self.amend = record.amend
        self.flush = record.flush

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Bring records to safety, and the state of run and observers."""
        self._record.sync(
            lambda: to_plain({"run": state(), "observers": self._observers.state_dict()}), now=now
        )


def run_attributes(
    flow: Flow, integrator: Integrator, theta: Tensor, projection: RandomProjection | None
) -> dict[str, Any]:
    """Return the attributes of a run that are known at its start."""
    return {
        "flow": flow.name,
        "method": integrator.name,
        "time_definition": integrator.time_definition,
        "device": str(theta.device),
        "device_name": torch.cuda.get_device_name(theta.device) if theta.is_cuda else "cpu",
        "dtype": str(theta.dtype).removeprefix("torch."),
        "n_parameters": theta.numel(),
        "stability_threshold": integrator.stability_threshold,
        "stability_threshold_formula": integrator.threshold_formula,
        "stability_threshold_of": _bounded_by_threshold(integrator),
        "error_norm": integrator.error_norm,
        "projection_kind": projection.kind if projection else None,
        "projection_seed": projection.seed if projection else None,
    }


def _bounded_by_threshold(integrator: Integrator) -> str | None:
    """Return the variable of the file that the stability threshold bounds."""
    if integrator.stability_threshold is None:
        return None
    return "effective_eigenvalue" if integrator.preconditions else "eigenvalue"


def end_attributes(outcome: Outcome, stepper: Stepper, observers: Observers) -> dict[str, Any]:
    """Return the attributes of a run that are known at its end."""
    return {
        "status": outcome.status.code,
        "message": outcome.message,
        "success": outcome.status.success,
        "n_steps": stepper.n_steps,
        "n_rejected_steps": stepper.n_rejected,
        "n_loss_increases": stepper.n_loss_increases,
        "n_gradients_observing": observers.n_gradients,
        "n_hvps_observing": observers.n_hvps,
    }


def to_numpy(theta: Tensor) -> np.ndarray:
    """Return a tensor as an array, sharing memory on the CPU."""
    return theta.detach().cpu().numpy()
