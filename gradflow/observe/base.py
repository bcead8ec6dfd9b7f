"""The contract of an observer."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from gradflow.driver import steps
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.observe.point import ObservedPoint


@dataclass(kw_only=True, eq=False)
class Observer(ABC):
    """A group of quantities that are measured along a run and recorded.

    To write one:

    1. A class derived from this one; a dataclass, not frozen, if it has options.
    2. :attr:`variables`: what it records, name → :class:`gradflow.Variable`. A dimension has the size that the first
       record gives it; those of the same name have the same size.
    3. :meth:`measure`: the values at a point, by name. What it leaves out is NaN in that record. The first record must
       give the size of every dimension.
    4. :meth:`state_dict` and :meth:`load_state_dict`, if later values depend on earlier ones: a checkpoint then holds
       that state, and a resumed run goes on from it. Make a new instance for each run.
    5. Randomness from a generator of its own, which is part of that state.
    6. ``at_midpoint = True``, if :meth:`measure` is to get the second-order midpoint (w_{t−1} + 2 w_t + w_{t+1})/4 of
       the iterates of an optimiser in the place of w_t, with w_t less the midpoint as ``point.oscillation``. The first
       and the last record have no midpoint, so the sizes of dimensions must come from others or from coordinates.

    Pass an instance: ``gradflow.integrate(loss, observe=[MyObserver(every=1.0)])``. Nothing has to be registered.

    Parameters
    ----------
    every : float, gradflow.steps or sequence of float, optional
        Cadence, as of ``save_every``. Default: each record.

    Attributes
    ----------
    name : str
        What the file's configuration calls it. Default: the name of the class.
    variables : mapping of str to Variable
    coordinates : mapping of str to (Variable, array)
        Fixed values along dimensions of the same names.
    at_midpoint : bool
        It measures at the midpoints of the iterates of a discrete method; its values come a step later.

    Examples
    --------
    The cosine of the angle between the gradient and the top eigenvector of the Hessian:

    >>> import torch, gradflow
    >>> class Alignment(gradflow.Observer):
    ...     variables = {"alignment": gradflow.Variable(long_name="cosine of gradient and top eigenvector")}
    ...
    ...     def measure(self, point):
    ...         u, g = point.top(1).vectors[:, 0], point.gradient
    ...         return {"alignment": abs(u @ g) / g.norm()}
    >>> bowl = lambda x: 0.5 * (torch.tensor([1.0, 10.0]) * x**2).sum()
    >>> run = gradflow.integrate(
    ...     bowl, torch.tensor([3.0, 0.4]), method="gd", lr=0.1, max_steps=2,
    ...     observe=[Alignment(every=gradflow.steps(2))],
    ... )
    >>> run.alignment.values.round(3)
    array([0.8, nan, 0. ])
    """

    every: Any = None

    name: ClassVar[str] = ""
    variables: ClassVar[Mapping[str, Variable]] = {}
    coordinates: ClassVar[Mapping[str, tuple[Variable, np.ndarray]]] = {}
    at_midpoint: ClassVar[bool] = False

    @abstractmethod
    def measure(self, point: ObservedPoint) -> Mapping[str, Any]:
        """Return values by variable name: numbers, arrays or tensors of the variable's dimensions."""

    def state_dict(self) -> dict[str, Any]:
        """Return what later values depend on: dicts, lists and tuples of tensors, arrays, numbers and strings."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most have none)
        """Go on from what :meth:`state_dict` gave."""

    def settings(self) -> dict[str, Any]:
        """Return the options by name, which are part of what makes a run the same run."""
        options = {
            field.name: _as_option(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.init and not field.name.startswith("_")
        }
        return {"class": type(self).__qualname__, **options}


def _as_option(value: Any) -> Any:
    """Return an option for the configuration: arrays by their hash, functions and objects by their name."""
    if isinstance(value, Mapping):
        return {key: _as_option(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_option(item) for item in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype} of shape {value.shape}, SHA-256 {digest}"
    if value is None or isinstance(value, bool | int | float | str | np.generic | steps):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)
