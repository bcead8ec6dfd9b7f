"""The flags of gd.py and flow.py (Cohen et al. 2021), in terms of our own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from gradflow.cli.options import DEFAULT_METHOD, flag
from gradflow.driver import steps
from gradflow.integrators import METHODS

#: What their flags are called here, where the meaning is the same.
SAME = {
    "opt": "method",
    "beta": "momentum",
    "neigs": "n_eigs",
    "nproj": "n_projections",
    "tick": "save_every",
    "max_time": "t_max",
    "max_step_size": "max_step",
    "physical_batch_size": "batch_size",
}
#: Counted in steps of an optimiser, in ticks of a flow.
COUNTED = {"eig_freq": "eigs_every", "iterate_freq": "projections_every"}
#: Defaults of theirs that differ from ours.
DEFAULTS = {"batch_size": 1000, "abridged_size": 5000}

_TIMES = {"beta", "tick", "max_time", "max_step_size"}


def flags() -> Iterator[click.Option]:
    """Make the options. docs/from-edge-of-stability.md describes them; the help doesn't list them."""
    for name in (*SAME, *COUNTED):
        kind = str if name == "opt" else float if name in _TIMES else int
        yield click.Option([flag(name)], type=kind, hidden=True)
    yield click.Option(["--save-freq"], type=int, hidden=True, expose_value=False, callback=_not_needed)


def _not_needed(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        raise click.UsageError(
            "--save-freq isn't needed: records are on disk within --sync-every seconds (5 unless said otherwise)."
        )


def translate(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Say in our options what was said in theirs.

    Parameters
    ----------
    chosen : mapping
        All options of the command by name; None where one wasn't given.

    Returns
    -------
    dict
        Without their names. Where any was given, what wasn't has their defaults: 1,000 samples at once, and
        eigenvalues on the first 5,000.

    Raises
    ------
    click.UsageError
        If the same is said twice, or a frequency can't be told in time.
    """
    theirs = {name: chosen[name] for name in (*SAME, *COUNTED) if chosen[name] is not None}
    ours = {name: value for name, value in chosen.items() if name not in (*SAME, *COUNTED)}
    for name, value in theirs.items():
        target = (SAME | COUNTED)[name]
        if ours.get(target) not in {None, 0}:
            raise click.UsageError(f"{flag(name)} and {flag(target)} say the same; give one.")
        if name in SAME:
            ours[target] = value
    for name in COUNTED:
        if theirs.get(name, -1) > 0:  # -1 says never; so does leaving it out
            ours[COUNTED[name]] = _cadence(name, theirs[name], ours)
    if theirs:
        for name, value in DEFAULTS.items():
            if ours[name] is None and (name != "abridged_size" or ours["n_eigs"]):
                ours[name] = value
    return ours


def _cadence(name: str, n: int, ours: Mapping[str, Any]) -> Any:
    method = METHODS.get(ours["method"] or DEFAULT_METHOD)
    if method is None or method.discrete:
        return steps(n)
    tick = ours["save_every"]
    if not isinstance(tick, float):
        raise click.UsageError(f"{flag(name)} counts ticks of a flow: give --tick, the time of one.")
    return n * tick
