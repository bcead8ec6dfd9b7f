"""Command-line options made from the signatures and docstrings of what they set."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from gradflow.api import integrate
from gradflow.driver import steps
from gradflow.errors import GradflowError
from gradflow.integrators import METHODS

#: Arguments of integrate() that are Python objects, or that a command line says in another way.
NOT_OPTIONS = {
    "loss", "params", "test", "observe", "callback", "method", "flow_options", "method_options", "options", "resume",
}  # fmt: skip
_CADENCES = {f"{what}_every" for what in ("save", "eigs", "density", "projections", "params", "test")}


class Cadence(click.ParamType[Any]):
    """A cadence: ``0.5`` is time, ``10steps`` is steps, ``10steps@0.01`` steps of that size, ``1,2,5`` times."""

    name = "time|Nsteps|t1,t2,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a cadence."""
        if not isinstance(value, str):
            return value
        try:
            if match := re.fullmatch(r"(\d+)\s*steps?(?:@(.+))?", value):
                return steps(int(match[1]), None if match[2] is None else float(match[2]))
            return read_times(value) if "," in value or ":" in value else float(value)
        except GradflowError as error:
            self.fail(str(error), param, ctx)
        except ValueError:
            self.fail(
                f"expected a time such as 0.5, steps such as 10steps or 10steps@0.01 (of that size), or times such as "
                f"1,2,5 or log:0.1:100:31 (31 of them), got {value!r}",
                param,
                ctx,
            )


class Times(click.ParamType[list[float]]):
    """Times separated by commas."""

    name = "t1,t2,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Read times."""
        if not isinstance(value, str):
            return list(value)
        try:
            return read_times(value)
        except ValueError:
            self.fail(
                f"expected times such as 1,2,5 or log:0.1:100:31 (31 of them), got {value!r}", param, ctx
            )


def read_times(text: str) -> list[float]:
    """Read times separated by commas, or ``log:FIRST:LAST:N`` for N times spaced evenly in their logarithm.

    Examples
    --------
    >>> read_times("log:0.1:10:3")
    [0.1, 1.0, 10.0]
    """
    if not text.startswith("log:"):
        return [float(part) for part in text.split(",")]
    first, last, n = text.removeprefix("log:").split(":")
    if not 0 < float(first) < float(last) < math.inf or int(n) < 2:
        raise ValueError(text)
    times: list[float] = np.geomspace(float(first), float(last), int(n)).tolist()
    return times


class Numbers(click.ParamType[Any]):
    """A number, or several separated by commas: ``0.9,0.99``."""

    name = "x|x1,x2,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read them."""
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(None if part.strip() == "none" else float(part) for part in value.split(","))
            return numbers if len(numbers) > 1 else numbers[0]
        except ValueError:
            self.fail(f"expected a number, or several separated by commas, got {value!r}", param, ctx)


class Settings(click.ParamType[dict[str, Any]]):
    """Options of a library's solver: ``safety=0.8,first_step=0.01``."""

    name = "name=value,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Read names with numbers."""
        if not isinstance(value, str):
            return dict(value)
        try:
            pairs = [part.split("=") for part in value.split(",")]
            return {
                name.strip(): int(x) if x.strip().lstrip("-").isdigit() else float(x) for name, x in pairs
            }
        except ValueError:
            self.fail(f"expected name=number, separated by commas, got {value!r}", param, ctx)


def parameter_docs(doc: str | None) -> dict[str, str]:
    r"""Read the Parameters section of a numpydoc docstring: first sentence by name.

    Examples
    --------
    >>> parameter_docs("Summary.\n\nParameters\n----------\na : int\n    First. More.\n")
    {'a': 'First.'}
    """
    section = re.search(
        r"Parameters\n-+\n(.*?)(?:\n\S[^\n]*\n-+\n|\Z)", inspect.cleandoc(doc or ""), re.DOTALL
    )
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section[1] if section else ""):
        head, _, body = entry.partition("\n")
        text = " ".join(body.split())
        sentence = re.match(r".*?[.](?=\s|$)", text)
        default = re.search(r"Default: [^.]*(?:\.\d[^.]*)*\.", text)
        said = sentence[0] if sentence else text
        if default and default[0] not in said:
            said += " " + default[0]
        said = said.replace("gradflow.steps(n)", "Nsteps (10steps, say)")
        for name in head.partition(" : ")[0].replace("*", "").split(", "):
            found[name] = said.replace("``", "").replace("`", "")
    return found


#: Options of methods whose flag has another name.
RENAMED = {"batch_size": "minibatch_size"}


def integrate_options() -> Iterator[click.Option]:
    """Make the options that set the arguments of integrate()."""
    docs = parameter_docs(integrate.__doc__)
    hints = typing.get_type_hints(integrate)
    for name, parameter in inspect.signature(integrate).parameters.items():
        if name in NOT_OPTIONS:
            continue
        yield _option(name, hints[name], parameter.default, docs[name])


def method_options() -> Iterator[click.Option]:
    """Make the options that set the options of the methods, each once.

    The size of mini-batches is ``--minibatch-size``: how many samples are processed at once is ``--batch-size``.
    """
    taken: dict[str, tuple[list[Any], str, dict[str, str]]] = {}
    for cls in METHODS.values():
        docs, hints = _documented(cls), typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            types, _, defaults = taken.setdefault(field.name, ([], docs[field.name], {}))
            types += _members(hints[field.name])
            who, default = cls.family or cls.name, _shown_default(field)
            defaults[who] = default if defaults.get(who, default) == default else ""
    for name, (types, doc, defaults) in taken.items():
        if len(set(defaults.values())) == 1 and len(defaults) > 1:
            shown = ", ".join(defaults) + next(iter(defaults.values()))
        else:
            shown = ", ".join(method + default for method, default in defaults.items())
        yield _option(RENAMED.get(name, name), typing.Union[tuple(types)], None, f"[{shown}] {doc}")  # noqa: UP007


def _documented(cls: type) -> dict[str, str]:
    """Read what a class and its bases say of its parameters; the class has the last word."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs |= parameter_docs(base.__doc__)
    return docs


def _shown_default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or field.default is None:
        return ""
    return (
        f", default {field.default:g}" if isinstance(field.default, float) else f", default {field.default}"
    )


def options(make: Callable[[], Iterator[click.Option]]) -> Callable[[click.Command], click.Command]:
    """Decorate a command with options that are made elsewhere."""

    def decorate(command: click.Command) -> click.Command:
        command.params.extend(make())
        return command

    return decorate


def flag(name: str) -> str:
    """Return the flag of a keyword: save_every is --save-every."""
    return "--" + name.replace("_", "-")


def _option(name: str, hint: Any, default: Any, doc: str) -> click.Option:
    kinds = [k for k in _members(hint) if k is not type(None)]
    common: dict[str, Any] = {"help": doc, "default": default, "show_default": default is not None}
    if bool in kinds:
        return click.Option([f"{flag(name)}/{flag('no_' + name)}"], **common)
    return click.Option([flag(name)], type=_type(name, kinds), **common)


def _type(name: str, kinds: list[Any]) -> Any:
    if name in _CADENCES:
        return Cadence()
    if name in {"save_at", "density_at"}:
        return Times()
    if name == "options":
        return Settings()
    if name == "out":
        return click.Path(path_type=Path)
    if name == "on_failure":
        return click.Choice(["return", "raise"])
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return Numbers()
    if choices := [
        value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)
    ]:
        return click.Choice(choices)
    return next(kind for kind in (float, int, str) if kind in kinds)


def _members(hint: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
