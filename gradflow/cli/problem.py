"""What ``gradflow run`` is to run: a named problem, or a function of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem
from torch import Tensor

from gradflow import problems
from gradflow.errors import suggest
from gradflow.loss import LossFunction, as_loss
from gradflow.problems import datasets, networks

#: What is loaded: the loss, the test loss or None, and θ₀ or None.
Problem = tuple[LossFunction, LossFunction | None, Tensor | None]

_USAGE = "DATASET NET CRITERION, or MODULE:FUNCTION"


def load(words: Sequence[str], seed: int, options: dict[str, Any]) -> Problem:
    """Load a problem by the words that name it.

    Parameters
    ----------
    words : sequence of str
        Data set, network and criterion, or ``module:function``.
    seed : int
        Of the initial weights.
    options : dict
        Keywords of :func:`gradflow.problems.load`, for a named problem.
    """
    if len(words) == 3:
        return problems.load(*words, seed=seed, **options)
    if len(words) == 1 and ":" in words[0]:
        return call(words[0], seed)
    raise click.UsageError(f"Expected {_USAGE}, got {' '.join(words)!r}.")


def call(name: str, seed: int) -> Problem:
    """Call a function of the user's own, ``module:function``, found from the working directory.

    Parameters
    ----------
    name : str
        The function takes nothing, and returns a loss, (loss, test loss), or (loss, test loss or None, θ₀).
    seed : int
        Of torch's random numbers while it is called; the caller's generators aren't touched.

    Raises
    ------
    click.UsageError
        If there is no such function, or it returns something else. What it raises itself passes.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that the user's module wants
        raise click.UsageError(
            f"No module {module_name!r} in {os.getcwd()} or on Python's path: expected {_USAGE}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise click.UsageError(
            f"Module {module_name!r} has no function {function_name!r}; {suggest(function_name, functions)}"
        )
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise click.UsageError(
            f"{name} must take no arguments; it has {inspect.signature(function)}."
        ) from error
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        torch.manual_seed(seed)
        returned = function()
    parts = returned if isinstance(returned, tuple) else (returned,)
    loss, test, theta = (*parts, None, None)[:3]
    if (
        len(parts) not in {1, 2, 3}
        or not callable(loss)
        or not isinstance(test, LossFunction | None)
        or not isinstance(theta, Tensor | None)
        or (theta is None and not isinstance(loss, LossFunction))
    ):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise click.UsageError(
            f"Expected {name} to return a loss, (loss, test), or (loss, test or None, θ₀), got ({kinds}). A loss is a "
            "gradflow.LossFunction, or a function of θ with θ₀ beside it; test is a LossFunction, θ₀ a tensor."
        )
    return as_loss(loss).label(problem=name, seed=seed), test, theta


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of a problem: data sets, then networks, then criteria."""
    known: tuple[Sequence[str], ...] = (datasets.NAMES, networks.NAMES, tuple(problems.LOSSES))
    place = len(ctx.params.get(param.name or "") or ())
    return [CompletionItem(name) for name in (*known, ())[min(place, 3)] if name.startswith(incomplete)]
