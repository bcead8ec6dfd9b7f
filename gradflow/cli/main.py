"""The command line: run, compare, info. The only place that prints."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import xarray as xr

from gradflow import problems
from gradflow.analysis import compare, summary
from gradflow.api import integrate
from gradflow.cli.options import flag, integrate_options, method_options, options
from gradflow.errors import GradflowError, IntegrationWarning
from gradflow.integrators import METHODS
from gradflow.problems import cifar
from gradflow.record import check_output, open_run, write_atomically

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gradflow")
def main() -> None:
    """Integrate the gradient flow of neural networks, and look at the records."""


@options(method_options)
@options(integrate_options)
@main.command()
@click.argument("dataset")
@click.argument("arch")
@click.argument("loss")
@click.option("--method", required=True, help=f"How to integrate: {', '.join(METHODS)}.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the initial weights.")
@click.option(
    "--dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True, help="Of everything."
)
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@click.option(
    "--batch-size", type=int, default=None, help="Samples processed at once. Default: all that fit."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="Directory of CIFAR-10. Default: $GRADFLOW_DATA.",
)
@click.option(
    "--test/--no-test", default=True, show_default=True, help="Record loss and accuracy on the test set."
)
def run(
    dataset: str,
    arch: str,
    loss: str,
    method: str,
    seed: int,
    dtype: str,
    device: str,
    batch_size: int | None,
    data: Path | None,
    test: bool,
    **chosen: Any,
) -> None:
    """Run a METHOD on a named problem and record it.

    DATASET is digits, chebyshev-K-N, cifar10, or cifar10-1k, -2k, -5k, -10k, -20k for its first images. ARCH is
    fc-tanh, fc-relu, fc-elu, fc-hardtanh or fc-softplus, with -depthN, or regression. LOSS is mse or ce. An example:

    gradflow run digits fc-tanh mse --method rk4 --t-max 5 --n-eigs 2 --out flow.nc
    """
    own = {option.name for option in method_options()}
    method_chosen = {k: v for k, v in chosen.items() if k in own and v is not None}
    rest = {k: v for k, v in chosen.items() if k not in own}
    try:
        train, test_loss, params = problems.load(
            dataset,
            arch,
            loss,
            seed=seed,
            dtype=_DTYPES[dtype],
            device=device,
            data=data,
            batch_size=batch_size,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IntegrationWarning)  # said below
            record = integrate(
                train,
                params,
                method=method,
                test=test_loss if test else None,
                method_options=method_chosen,
                **rest,
            )
    except GradflowError as error:
        raise _failure(error) from error
    _print_summary(record)
    if rest["out"] is not None:
        click.echo(f"recorded in {rest['out']}")
    if not record.attrs["success"]:
        click.echo(f"Error: {record.attrs['message']}", err=True)
        sys.exit(1)


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


@main.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--interp/--no-interp", default=False, show_default=True, help="Interpolate B to A's times.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Write the comparison to a netCDF file."
)
@click.option("--overwrite/--no-overwrite", default=False, show_default=True, help="Replace that file.")
def compare_files(a: Path, b: Path, interp: bool, out: Path | None, overwrite: bool) -> None:
    """Print how far the recorded runs A and B are apart over time, relative to the path length of B."""
    try:
        if out is not None:
            if out.resolve() in {a.resolve(), b.resolve()}:
                raise click.ClickException(f"--out is one of the runs, {out}. Choose another name.")
            check_output(out.absolute(), overwrite=overwrite)
        result = compare(open_run(a), open_run(b), interp=interp)
    except (GradflowError, OSError) as error:
        raise _failure(error) from error
    click.echo(
        f"a: {result.attrs['a']}   b: {result.attrs['b']}   distance from: {result.attrs['distance_from']}"
    )
    click.echo(f"{'time':>12} {'distance':>12} {'/ path':>10} {'loss a':>12} {'loss b':>12}")
    rows = np.unique(np.linspace(0, result.sizes["time"] - 1, 20).round().astype(int))
    for row in rows:
        at = result.isel(time=row)
        click.echo(
            f"{float(at.time):12.6g} {float(at.distance):12.4e} {float(at.relative_distance):10.3%} "
            f"{float(at.train_loss_a):12.6g} {float(at.train_loss_b):12.6g}"
        )
    for name in ("a", "b"):
        crossing = float(result[f"crossing_time_{name}"])
        if np.isfinite(crossing):
            click.echo(f"λ₁ of {name} first above 2/η at t = {crossing:.6g}")
    if out is not None:
        write_atomically(out, lambda target: result.to_netcdf(target, engine="netcdf4"))
        click.echo(f"written to {out}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """Print what a recorded run is, how it was made and how it ended."""
    try:
        record = open_run(file)
    except (GradflowError, OSError) as error:
        raise _failure(error) from error
    if "gradflow_config" not in record.attrs:
        raise click.ClickException(f"{file} wasn't written by gradflow: it has no gradflow_config.")
    _print_summary(record)
    click.echo("\nconfiguration")
    for name, value in json.loads(record.attrs["gradflow_config"]).items():
        click.echo(f"  {name}: {json.dumps(value, ensure_ascii=False)}")
    click.echo("\nvariables")
    for name, array in record.variables.items():
        dims = ", ".join(f"{dim} {size}" for dim, size in array.sizes.items())
        click.echo(f"  {name!s:<20} ({dims})  {array.attrs.get('long_name', '')}")
    click.echo("\nattributes")
    for name, value in record.attrs.items():
        if name != "gradflow_config":
            click.echo(f"  {name}: {value}")


def _failure(error: Exception) -> click.ClickException:
    """Make an error of the library one of the command line: keywords become flags."""
    return click.ClickException(re.sub(r"\b([a-z]\w*)=(True|…)", lambda m: flag(m[1]), str(error)))


def _print_summary(record: xr.Dataset) -> None:
    labels = {
        "n_steps": "steps",
        "t": "final time",
        "train_loss": "training loss",
        "train_accuracy": "training accuracy",
        "test_loss": "test loss",
        "test_accuracy": "test accuracy",
        "sharpness": "λ₁",
        "stability_threshold": "2/η",
        "crossing_time": "λ₁ crosses 2/η at t",
        "n_gradients": "gradients",
        "n_hvps": "H·v",
        "wall_time": "seconds",
    }
    for name, value in summary(record).items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        click.echo(f"{labels.get(name, name):<20} {shown}")
