"""Modules and names that have a new place: importing one says where it is now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

#: Former name: what to import instead.
MOVED = {
    "gradflow.analysis.axes": "gradflow.plot.axes",
    "gradflow.analysis.landscape_plot": "gradflow.plot",
    "gradflow.analysis.plot": "gradflow.plot",
    "gradflow.api.by_hand": "gradflow.api",
    "gradflow.api.parts": "gradflow.api.assembly and gradflow.api.measurements",
    "gradflow.api.run": "gradflow.api",
    "gradflow.driver.status": "gradflow.status",
    "gradflow.integrators.capped": "gradflow.integrators.foreign.capped",
    "gradflow.integrators.error_control": "gradflow.integrators.controlled",
    "gradflow.integrators.flow": "gradflow.flows",
    "gradflow.integrators.krylov": "gradflow.integrators.phi.spaces",
    "gradflow.integrators.reference_scipy": "gradflow.integrators.foreign.scipy_solvers",
    "gradflow.integrators.reference_torchdiffeq": "gradflow.integrators.foreign.torchdiffeq_solvers",
    "gradflow.integrators.step_rules": "gradflow.integrators.step_size",
    "gradflow.integrators.torch_methods": "gradflow.integrators.optimizers.registry",
    "gradflow.integrators.torch_optimizer": "gradflow.integrators.optimizers.adapter",
    "gradflow.integrators.unseen": "gradflow.integrators.phi.unseen",
    "gradflow.loss.empirical": "gradflow.loss.network",
    "gradflow.loss.source": "gradflow.loss",
    "gradflow.observe.observers": "gradflow.observe",
    "gradflow.optim.elra_boost": "gradflow.optim.elra",
    "gradflow.optim.elra_control": "gradflow.optim.elra",
    "gradflow.optim.elra_descent": "gradflow.optim.elra",
    "gradflow.optim.elra_flat": "gradflow.optim.elra",
    "gradflow.optim.elra_period": "gradflow.optim.elra",
    "gradflow.optim.elra_scaler": "gradflow.optim.elra",
    "gradflow.optim.elra_settings": "gradflow.optim.elra",
    "gradflow.record.run_record": "gradflow.record",
    "gradflow.spectrum.task": "gradflow.spectrum.eigenproblem",
}

#: Former public names: what to use instead.
RENAMED = {
    "gradflow.analysis.plot": "gradflow.plot",
    "gradflow.integrators.Flow": "gradflow.flows.Field (gradflow.Flow is what flows)",
    "gradflow.record.VARIABLES": "Observer.variables: each observer has its own",
    "gradflow.record.Variable": "gradflow.Variable",
}


def refuse_former_name(module: str, name: str) -> NoReturn:
    """Refuse a name that a module hasn't: the `__getattr__` of a package that had others before.

    Raises
    ------
    ImportError
        For a former name, with the new one in the message (an AttributeError's wouldn't be shown on import).
    AttributeError
        For any other.
    """
    full = f"{module}.{name}"
    if full in RENAMED:
        raise ImportError(f"{full} has moved: use {RENAMED[full]}.", name=full)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


class Signpost:
    """An importer, the last to be asked, that knows the former names of modules."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse a former name.

        Raises
        ------
        ModuleNotFoundError
            The message has the new name.
        """
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} has moved: import from {MOVED[name]}.", name=name)
        return None


def put_up() -> None:
    """Answer imports of former names from now on."""
    if not any(isinstance(each, type) and each.__name__ == Signpost.__name__ for each in sys.meta_path):
        sys.meta_path.append(Signpost)
