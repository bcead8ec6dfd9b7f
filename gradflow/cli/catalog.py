"""``gradflow methods`` and ``gradflow flows``: what there is, and the options of each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import click

from gradflow.cli.options import complete_name, flows, methods, options_of
from gradflow.cli.values import first_sentence, shown_type, type_of, without_markup
from gradflow.errors import suggest


@click.command("methods")
@click.argument("name", required=False, shell_complete=complete_name(methods))
def list_methods(name: str | None) -> None:
    """Print the methods, or what one of them is and what its options mean."""
    _print("method", name, methods(), ("order", "kind"), "gradflow run … --method NAME -o OPTION=VALUE")


@click.command("flows")
@click.argument("name", required=False, shell_complete=complete_name(flows))
def list_flows(name: str | None) -> None:
    """Print the flows, or what one of them is and what its options mean."""
    _print("flow", name, flows(), (), "gradflow run … --flow NAME -f OPTION=VALUE")


def _print(
    what: str, name: str | None, registry: Mapping[str, type], columns: tuple[str, ...], usage: str
) -> None:
    if name is None:
        _print_table(registry, columns)
        click.echo(f"\ngradflow {what}s NAME describes one, with its options. To use one: {usage}")
        return
    if name not in registry:
        raise click.ClickException(f"No {what} {name!r}; {suggest(name, registry)}")
    cls = registry[name]
    facts = ", ".join(f"{column}: {_fact(cls, column)}" for column in columns)
    formatter = click.HelpFormatter(width=click.get_current_context().terminal_width)
    formatter.write_text(f"{name}{f' ({facts})' if facts else ''}\n\n{_text(cls)}")
    rows = [
        (
            f"{option.name}={shown_type(type_of(option.hint))}",
            without_markup(option.doc) + (f" [{option.default}]" if option.default else ""),
        )
        for option in options_of(cls)
    ]
    with formatter.section(f"Options ({usage.replace('NAME', name)})"):
        formatter.write_dl(rows or [("none", "")])
    click.echo(formatter.getvalue().rstrip())


def _print_table(registry: Mapping[str, type], columns: tuple[str, ...]) -> None:
    names: dict[type, list[str]] = {}
    for each, cls in registry.items():
        names.setdefault(cls, []).append(each)
    rows = [("name", *columns, "what it is")]
    for cls, aliases in names.items():
        facts = (_fact(cls, column) for column in columns)
        rows.append((", ".join(sorted(aliases, key=len)), *facts, first_sentence(_text(cls))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _fact(cls: Any, column: str) -> str:
    """Return the order or the kind of a method."""
    if column == "order":
        return str(cls.order)
    return cls.family or ("optimiser" if cls.discrete else "flow")


def _text(cls: type) -> str:
    """Return what a class says of itself before the sections of its docstring, or what a base says."""
    text = re.split(r"\n\n[^\n]+\n-{3,}\n", inspect.getdoc(cls) or "")[0]
    return re.sub(
        r"\n\n(?=  )", "\n\n\b\n", without_markup(text)
    )  # click leaves formulas as they are after \b
