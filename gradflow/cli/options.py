"""Flags made from the signature of integrate() and from the options of methods and flows."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import click
from click.shell_completion import CompletionItem

from gradflow.api import integrate
from gradflow.cli.values import CADENCE, first_sentence, members, parameter_docs, type_of, without_markup
from gradflow.errors import suggest
from gradflow.flows import FLOWS
from gradflow.integrators import METHODS
from gradflow.integrators.registry import options_hint

#: Arguments of integrate() that are Python objects, or that the command line says in another way.
NOT_FLAGS = {"loss", "params", "test", "callback", "observe", "events", "resume", "options"}
NOT_FLAGS |= {"method", "method_options", "flow", "flow_options"}
#: Options of methods whose flag has another name: --batch-size is how many samples are processed at once.
RENAMED = {"batch_size": "minibatch_size"}

DEFAULT_METHOD = "auto"


def flag(name: str) -> str:
    """Return the flag of a keyword: save_every is --save-every."""
    return "--" + name.replace("_", "-")


@cache
def integrate_flags() -> tuple[click.Option, ...]:
    """Make the flags that set the arguments of integrate()."""
    docs, hints = parameter_docs(integrate), typing.get_type_hints(integrate)
    return tuple(
        _flag(name, hints[name], first_sentence(docs[name]), parameter.default)
        for name, parameter in inspect.signature(integrate).parameters.items()
        if name not in NOT_FLAGS
    )


@cache
def method_flags(method: str | None) -> tuple[click.Option, ...]:
    """Make the flags that set the options of one method, or of the default; none for one that isn't known."""
    method = method or DEFAULT_METHOD
    fields = options_of(METHODS[method]) if method in METHODS else []
    taken = {option.name for option in integrate_flags()}
    return tuple(
        _flag(RENAMED.get(option.name, option.name), option.hint, option.said)
        for option in fields
        if option.name not in taken
    )


@cache
def flow_flags(cls: type | None) -> tuple[click.Option, ...]:
    """Make the flags that set the options of a flow's class; none for None."""
    taken = {option.name for option in integrate_flags()}
    return tuple(
        _flag(option.name, option.hint, option.said)
        for option in ([] if cls is None else options_of(cls))
        if option.name not in taken
    )


def _flag(name: str, hint: Any, doc: str, default: Any = None) -> click.Option:
    keywords = inspect.signature(integrate).parameters
    said = re.sub(r"`(\w+)`", lambda m: flag(m[1]) if m[1] in keywords else m[1], doc)
    common: dict[str, Any] = {"default": default, "show_default": default is not None}
    kind = type_of(hint)
    if kind is CADENCE:  # the help says elsewhere how cadences are written
        said = re.sub(r":.*?\. ", ". ", said)
    common["help"] = without_markup(said)
    if kind is click.BOOL:
        return click.Option([f"{flag(name)}/{flag('no_' + name)}"], **common)
    metavar = None if isinstance(kind, click.Choice) else kind.name.upper()
    return click.Option([flag(name)], type=kind, metavar=metavar, **common)


@dataclasses.dataclass(frozen=True)
class OptionOf:
    """An option of a method or of a flow.

    Attributes
    ----------
    name : str
    hint : type
    default : str
        As it is shown: ``default 1.0``, ``required``, or nothing for None.
    doc : str
        What its class says of it.
    """

    name: str
    hint: Any
    default: str
    doc: str

    @property
    def said(self) -> str:
        """What the help of its flag says."""
        return f"{first_sentence(self.doc)}{f' [{self.default}]' if self.default else ''}"

    def read(self, text: str) -> Any:
        """Read a value: ``none`` is None where that is allowed."""
        if text == "none" and type(None) in members(self.hint):
            return None
        return type_of(self.hint).convert(text, None, None)


def options_of(cls: type) -> list[OptionOf]:
    """Return the options of a method's or flow's class, a dataclass, with what it and its bases say of them."""
    docs, hints = parameter_docs(cls), typing.get_type_hints(cls)
    found = []
    for field in sorted(
        dataclasses.fields(cls), key=lambda field: field.kw_only is True
    ):  # a method's own first
        default = field.default
        if default is dataclasses.MISSING:
            shown = "required" if field.default_factory is dataclasses.MISSING else ""
        else:
            shown = "" if default is None else f"default {default}"
        # An optimiser's own signature needn't say types.
        hint = (
            type(default) if hints[field.name] is Any and shown.startswith("default") else hints[field.name]
        )
        found.append(OptionOf(field.name, hint, shown, docs.get(field.name, "")))
    return found


def flows() -> Mapping[str, type]:
    """Return the flows by name."""
    return FLOWS


def methods() -> Mapping[str, type]:
    """Return the methods by name."""
    return METHODS


def complete_name(registry: Callable[[], Mapping[str, type]]) -> Callable[..., list[CompletionItem]]:
    """Return what completes the names of methods or flows in the shell."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in registry() if name.startswith(incomplete)]

    return complete


def chosen_method(args: Sequence[str]) -> str | None:
    """Return the method that a command line asks for, before it is parsed; None if it asks for none."""
    return _last_value(args, "--method", "--opt")


def chosen_flow(args: Sequence[str]) -> str | None:
    """Return the flow that a command line asks for, before it is parsed; None if it asks for none."""
    return _last_value(args, "--flow")


def method_that_runs(args: Sequence[str]) -> str | None:
    """Return the method whose options a command line may set: the flow's own, where auto stands for that."""
    method, flow = chosen_method(args), chosen_flow(args)
    schemes = FLOWS[flow].schemes if flow in FLOWS else {}
    if method not in {None, "auto"} or not schemes:
        return method
    assigned = [text.partition("=")[2] for text in _values(args, "-f") if text.startswith("scheme=")]
    scheme = _last_value(args, "--scheme") or (assigned[-1] if assigned else None)
    return schemes.get(str(scheme), next(iter(schemes.values())))


def _last_value(args: Sequence[str], *flags: str) -> str | None:
    found = _values(args, *flags)
    return found[-1] if found else None


def _values(args: Sequence[str], *flags: str) -> list[str]:
    """Return what a command line says after some flags, before it is parsed."""
    found = []
    for arg, following in pairwise((*args, "")):
        name, given, value = arg.partition("=")
        if name in flags:
            found.append(value if given else following)
    return found


def check_flow(flow: str | None) -> None:
    """Refuse a flow that isn't known."""
    if flow is not None and flow not in FLOWS:
        raise click.UsageError(f"No flow {flow!r}; {suggest(flow, FLOWS)}")


def check_method(method: str | None) -> str:
    """Return the method to take; refuse one that isn't known."""
    if method is None:
        return DEFAULT_METHOD
    if method not in METHODS:
        raise click.UsageError(f"No method {method!r}; {suggest(method, METHODS)}")
    return method


def read_assignments(
    flag_name: str, given: Iterable[str], known: Iterable[OptionOf], of: str
) -> dict[str, Any]:
    """Read what ``-o name=value`` said, each value by the type of its option.

    Parameters
    ----------
    flag_name : str
        -o or -f.
    given : iterable of str
    known : iterable of OptionOf
        The options of the method or flow.
    of : str
        What has the options, for messages: ``Method 'rk4'``.

    Raises
    ------
    click.UsageError
        If one isn't ``name=value``, isn't known, is given twice, or has a value that can't be read.
    """
    options = {option.name: option for option in known}
    found: dict[str, Any] = {}
    for text in given:
        name, is_assigned, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not is_assigned:
            raise click.UsageError(f"Expected {flag_name} as name=value, got {text!r}.")
        if name not in options:
            raise click.UsageError(f"{of} has no option {name!r}; {suggest(name, options)}")
        if name in found:
            raise click.UsageError(f"{flag_name} {name} was given twice.")
        try:
            found[name] = options[name].read(value)
        except click.BadParameter as error:
            raise click.UsageError(f"{flag_name} {name}: {error.message}") from error
    return found


def complete_assignment(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of -o and -f, from the options of the method or flow given so far."""
    registry, chosen = flows(), str(ctx.params.get("flow"))
    if param.name == "method_options":
        registry, chosen = methods(), method_that_runs(ctx.meta.get(ARGS, ())) or DEFAULT_METHOD
    known = options_of(registry[chosen]) if chosen in registry else []
    return [
        CompletionItem(f"{option.name}=", help=first_sentence(option.doc))
        for option in known
        if option.name.startswith(incomplete)
    ]


#: Where a command with the flags of a method keeps what was typed.
ARGS = "gradflow.cli.args"


class RunCommand(click.Command):
    """A command that has the flags of the method and of the flow that it is given, beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return its own, those of the method, and those of the flow; what two have is one flag."""
        args = ctx.meta.get(ARGS, ())
        found = [*super().get_params(ctx), *method_flags(method_that_runs(args))]
        taken = {param.name for param in found}
        of_flow = flow_flags(FLOWS.get(str(chosen_flow(args))))
        return [*found, *(option for option in of_flow if option.name not in taken)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; a flag that the method hasn't is refused as integrate() refuses an option that it hasn't."""
        ctx.meta[ARGS] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not error.option_name.startswith("--"):
                raise
            typed = ctx.meta[ARGS]
            flow = chosen_flow(typed)
            check_flow(flow)
            method = check_method(method_that_runs(typed))
            name = error.option_name[2:].replace("-", "_").removeprefix("no_")
            of_flow = flow_flags(FLOWS.get(str(flow)))
            valid = {str(option.name) for option in (*method_flags(method), *of_flow)}
            flags = (param for param in self.params if not getattr(param, "hidden", False))
            own = (str(param.name) for param in flags if param.opts[0].startswith("--"))
            who = f"Method {method!r} has" if flow is None else f"Method {method!r} and flow {flow!r} have"
            text = f"{who} no option {name!r}; {suggest(name, valid, own)}"
            hint = options_hint(method) if name == "options" else None
            raise click.UsageError(hint or text, ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help: its own flags, and those of a method and a flow that were asked for."""
        sections: dict[str, Sequence[click.Parameter]] = {"Options": super().get_params(ctx)}
        args = ctx.meta.get(ARGS, ())
        if (flow := chosen_flow(args)) is not None:
            own = {param.name for param in sections["Options"]}
            of_flow = flow_flags(FLOWS.get(flow))
            sections[f"Options of the flow {flow}"] = [each for each in of_flow if each.name not in own]
        if (method := method_that_runs(args)) is not None:
            sections[f"Options of {method}"] = method_flags(method)
        for title, params in sections.items():
            options = (param for param in params if isinstance(param, click.Option))
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            with formatter.section(title):
                formatter.write_dl(records or [("none", "")])


def as_flags(text: str, ctx: click.Context) -> str:
    """Put flags for keywords in a message of the library: "pass lr=…" becomes "pass --lr"."""
    flags = {option.name: option.opts[0] for option in (*integrate_flags(), *ctx.command.get_params(ctx))}
    text = re.sub(r"\b([a-z]\w*)=(True|…)", lambda m: flags.get(m[1], m[0]), text)
    return re.sub(r"(?<![-\w])[a-z]+(?:_[a-z]+)+\b", lambda m: flags.get(m[0], m[0]), text)


def failure(error: Exception) -> click.ClickException:
    """Make an error of the library one of the command line."""
    return click.ClickException(as_flags(str(error), click.get_current_context()))
