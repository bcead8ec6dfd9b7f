"""The command line. Only :mod:`gradflow.cli` prints."""

from __future__ import annotations

from pathlib import Path

import click

from gradflow.cli.catalog import list_flows, list_methods
from gradflow.cli.files import compare_files, info, plot_files
from gradflow.cli.run import run
from gradflow.problems import cifar

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="gradflow")
def main() -> None:
    """Integrate the gradient flow of neural networks, and look at the records."""


for command in (run, list_methods, list_flows, compare_files, plot_files, info):
    main.add_command(command)


@main.command()
@click.argument("dataset", type=click.Choice(["cifar10"]))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar=cifar.VARIABLE,
    required=True,
    help=f"Directory to put it into. Default: ${cifar.VARIABLE}.",
)
def fetch(dataset: str, data: Path) -> None:
    """Download a data set, checked against its SHA-256."""
    click.echo(f"downloading {cifar.URL}")
    try:
        path = cifar.fetch(data)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"The download failed: {error}") from error
    click.echo(f"{path}\nready: gradflow run cifar10-5k … --data {data}")
