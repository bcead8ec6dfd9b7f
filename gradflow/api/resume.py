"""Whether a run starts, goes on, or has ended already; and what makes it the same run."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gradflow.api.assembly import to_numpy
from gradflow.errors import InvalidInputError, InvalidTypeError, ResumeError, ResumeWarning
from gradflow.loss import LossFunction
from gradflow.record import check_output, differences, open_run, to_json, what_is_at

_PathLike = str | os.PathLike[str]
#: What may change from one part of a run to the next.
_MAY_DIFFER = {"max_wall_time"}
#: What a configuration leaves out where there is none.
_UNLESS_GIVEN = {"observe": "{}", "events": "[]", "midpoint": "false", "error_estimate": "false"}


def where_to_record(
    out: _PathLike | None, resume: _PathLike | None, *, overwrite: bool
) -> tuple[_PathLike | None, Literal["nothing", "unfinished", "ended"]]:
    """Return the file to record in, and what of this run there is that counts.

    Parameters
    ----------
    out, resume, overwrite
        As in :func:`gradflow.integrate`.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If they contradict each other, or aren't paths.
    OutputExistsError
        If there is something, and neither `overwrite` nor `resume` says what becomes of it.
    ResumeError
        If there is nothing to resume.
    """
    if resume is None:
        if out is not None:
            check_output(Path(out).absolute(), overwrite=overwrite)
        return out, "nothing"
    if not isinstance(resume, str | os.PathLike):
        raise InvalidTypeError(
            f'Expected resume as a path or "auto", got {type(resume).__name__} {resume!r}.'
        )
    if overwrite:
        raise InvalidInputError("resume keeps what there is, overwrite discards it: give one of them.")
    if resume == "auto":
        if out is None:
            raise InvalidInputError('resume="auto" needs the name of the run: give out.')
        path = Path(out).absolute()
        there = what_is_at(path)
        if there != "ended":
            check_output(path, overwrite=False, resume=there == "unfinished")
        return out, there
    if out is not None and Path(out).absolute() != Path(resume).absolute():
        raise InvalidInputError(
            f"Expected resume and out to be one file, got {resume} and {out}. Leave out `out`."
        )
    check_output(Path(resume).absolute(), overwrite=False, resume=True)
    return resume, "unfinished"


def identity_of(
    config: Mapping[str, Any], loss: LossFunction, test: LossFunction | None, theta: Tensor
) -> dict[str, str]:
    """Say what makes a run the one that it is: its configuration, its data, its start. By name, as text."""
    same = {name: to_json(value) for name, value in config.items() if name not in _MAY_DIFFER}
    data = {"data": loss.fingerprint(), "test data": "none" if test is None else test.fingerprint()}
    return same | data | {"θ₀": _start(to_numpy(theta))}


def open_ended(
    path: _PathLike, identity: Mapping[str, str], loss: LossFunction, device: torch.device
) -> xr.Dataset:
    """Open the file of a run that has ended, if it is the run that was asked for.

    Parameters
    ----------
    path : path
    identity : mapping
        Of the run that was asked for, from :func:`identity_of`.
    loss : LossFunction
        Its loss, which must have the recorded values at the first and the last θ.
    device : torch.device
        That of θ.

    Raises
    ------
    ResumeError
        If it is another run; the differences are named.
    """
    run = open_run(path)
    try:
        _check_same(run, path, identity, loss, device)
    except BaseException:
        run.close()
        raise
    return run


def _check_same(
    run: xr.Dataset, path: _PathLike, identity: Mapping[str, str], loss: LossFunction, device: torch.device
) -> None:
    if "gradflow_config" not in run.attrs or "params_initial" not in run or "params" not in run:
        raise ResumeError(f"{path} isn't the file of a run. Choose another name.")
    before, identity = _identity_in(run), _UNLESS_GIVEN | dict(identity)
    unknown = [name for name in identity if name not in before]
    different = differences(before, {name: identity[name] for name in identity if name in before})
    different = different or _other_loss(run, loss, device)
    if different:
        raise ResumeError(
            f"{path} is the file of another run, which has ended: {different}. Choose another name, or pass "
            "overwrite=True in the place of resume to replace it."
        )
    if unknown:
        warnings.warn(
            f"{path} doesn't tell its {' and '.join(unknown)}, as an older version wrote it. In all that it tells, and "
            "in the values of the loss at its first and last θ, it is the run that was asked for, and is returned.",
            ResumeWarning,
            stacklevel=4,  # in integrate()
        )


def _identity_in(run: xr.Dataset) -> dict[str, str]:
    """Read what a file says of what :func:`identity_of` compares; what it doesn't say is left out."""
    config = json.loads(run.attrs["gradflow_config"])
    config = {"flow": "gradient", "flow_options": {}} | config  # older versions had no other
    found = _UNLESS_GIVEN | {
        name: to_json(value) for name, value in config.items() if name not in _MAY_DIFFER
    }
    found |= {name: str(run.attrs[key]) for name, key in _DATA.items() if key in run.attrs}
    return found | {"θ₀": _start(run.params_initial.values)}


#: The attributes of a file that tell its data.
_DATA = {"data": "data", "test data": "test_data"}


def data_attributes(identity: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of a file that tell its data, without which it can't be told from another run's."""
    return {key: identity[name] for name, key in _DATA.items()}


def _other_loss(run: xr.Dataset, loss: LossFunction, device: torch.device) -> str:
    """Return how the loss differs from the recorded one, to half of the digits; empty if it doesn't.

    Data that aren't tensors are hashed in part, and a callable can't be: its values tell it from another.
    """
    first = float(run.train_loss[0])
    for where, name, row in (("first", "params_initial", 0), ("last", "params", -1)):
        theta = torch.from_numpy(run[name].values).to(device)
        before, now = float(run.train_loss[row]), float(loss(theta))
        if not _close(before, now, max(abs(first), abs(before)), theta.dtype):
            return f"the loss at its {where} θ was {before:.9g}, is {now:.9g}"
    return ""


def check_first_loss(before: float, now: float, dtype: torch.dtype) -> None:
    """Refuse to go on with a run whose loss at θ₀ was another, which is all that tells callables apart."""
    if not _close(before, now, abs(before), dtype):
        raise ResumeError(
            f"The run can't be resumed, because it was another one: the loss at θ₀ was {before:.9g}, is {now:.9g}. "
            "Give the same."
        )


def _close(before: float, now: float, scale: float, dtype: torch.dtype) -> bool:
    return abs(now - before) <= torch.finfo(dtype).eps ** 0.5 * scale


def _start(theta: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(theta).tobytes()).hexdigest()
    return f"{theta.size} parameters in torch.{theta.dtype}, SHA-256 {digest}"
