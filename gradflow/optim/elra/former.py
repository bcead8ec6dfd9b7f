"""Former names in ELRA's saved states, most of which had one letter."""

from __future__ import annotations

from typing import Any

from gradflow.errors import InvalidInputError

#: Names of now by former name, for each part of the state.
FORMER_NAMES: dict[str, dict[str, str]] = {
    "control": {
        "α": "secant_length",
        "η": "schedule_length",
        "ρ": "retrace_damper",
        "σ": "schedule_exponent",
        "d": "growth_damper",
        "N": "slope_norm",
        "s": "slope_ratio",
        "f_last": "last_loss",
        "f_first": "first_loss",
        "μ": "reference_loss",
        "δ": "loss_spread",
        "κ": "leniency",
        "T": "n_calls",
        "R": "n_revoked_in_window",
        "A": "opposition_sum",
        "a": "opposition_min",
        "Γ": "slope_norm_sum",
        "G": "mean_slope_norm",
        "c": "micro_batches",
        "q": "stagnant_periods",
        "L": "period_losses",
        "w": "decay_strength",
    },
    "period": {"F": "loss_sum", "V": "square_sum", "n": "n_losses", "t": "n_calls", "r": "n_revoked"},
    "group": {"g": "gradient", "n": "n_batches"},
}


def with_present_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return ELRA's part of a state dict under the names of now; a state that has them is returned as it is.

    Raises
    ------
    InvalidInputError
        If the state was saved with ``compat=True``, which there is no more.
    """
    if "θ" not in state:
        return state
    control = _renamed("control", state["control"])
    settings = dict(control["settings"])
    if settings.pop("compat", False):
        raise InvalidInputError(
            "Expected a state of ELRA as it is, got one saved with the private option compat=True, which is no more. "
            "Start anew."
        )
    group = _renamed("group", state["group"])
    group.pop("last")
    return {
        "control": control | {"settings": settings, "period": _renamed("period", control["period"])},
        "track": state["track"],
        "group": group,
        "theta": state["θ"],
    }


def _renamed(part: str, values: dict[str, Any]) -> dict[str, Any]:
    return {FORMER_NAMES[part].get(name, name): value for name, value in values.items()}
