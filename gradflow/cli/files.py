"""``gradflow compare``, ``plot`` and ``info``: what recorded runs hold."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import xarray as xr

from gradflow.analysis import compare, is_optimiser, label, summary
from gradflow.cli.options import failure
from gradflow.errors import GradflowError
from gradflow.record import check_output, open_run, write_atomically


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--interp/--no-interp", default=False, show_default=True, help="Interpolate B to A's times.")
@click.option(
    "--smooth", type=float, default=None,
    help="Steps over which an optimiser, and for errors a flow beside it, are averaged. Default: 50 if evenly spaced.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Write the comparison to a netCDF file."
)
@click.option("--overwrite/--no-overwrite", default=False, show_default=True, help="Replace that file.")
def compare_files(
    a: Path, b: Path, interp: bool, smooth: float | None, out: Path | None, overwrite: bool
) -> None:
    """Print how far the recorded runs A and B are apart over time, relative to the path length of B.

    Of an optimiser and a flow also what the flow predicts of the optimiser's averages, and the mean errors from where
    the optimiser crosses its threshold of stability on.
    """
    try:
        if out is not None:
            if out.resolve() in {a.resolve(), b.resolve()}:
                raise click.ClickException(f"--out is one of the runs, {out}. Choose another name.")
            check_output(out.absolute(), overwrite=overwrite)
        result = compare(open_run(a), open_run(b), interp=interp, smooth=smooth)
    except (GradflowError, OSError) as error:
        raise failure(error) from error
    click.echo(
        f"a: {result.attrs['a']}   b: {result.attrs['b']}   distance from: {result.attrs['distance_from']}"
    )
    averages = {name: head for name, head in _AVERAGES.items() if name in result}
    heads = "".join(f" {head:>12}" for head in averages.values())
    click.echo(f"{'time':>12} {'distance':>12} {'/ path':>10} {'loss a':>12} {'loss b':>12}{heads}")
    rows = np.unique(np.linspace(0, result.sizes["time"] - 1, 20).round().astype(int))
    for row in rows:
        at = result.isel(time=row)
        click.echo(
            f"{float(at.time):12.6g} {float(at.distance):12.4e} {float(at.relative_distance):10.3%} "
            f"{float(at.train_loss_a):12.6g} {float(at.train_loss_b):12.6g}"
            + "".join(f" {float(at[name]):12.4g}" for name in averages)
        )
    for name in ("a", "b"):
        crossing = float(result[f"crossing_time_{name}"])
        if np.isfinite(crossing):
            said = result[f"crossing_time_{name}"].attrs["long_name"]
            click.echo(f"{name}: {said}: t = {crossing:.6g}")
    _print_means(result)
    if out is not None:
        write_atomically(out, lambda target: result.to_netcdf(target, engine="netcdf4"))
        click.echo(f"written to {out}")


#: Columns of an optimiser beside a flow.
_AVERAGES = {
    "midpoint_distance": "to midpoint",
    "train_loss_smoothed": "smoothed",
    "predicted_train_loss": "predicted",
}


def _print_means(result: xr.Dataset) -> None:
    """Print the means of errors and distances after the crossing, and why nothing was smoothed."""
    means = {
        str(name).removeprefix("mean_").replace("_", " "): float(value)
        for name, value in result.data_vars.items()
        if str(name).startswith("mean_") and np.isfinite(float(value))
    }
    for name, value in means.items():
        shown = f"{value:.3%}" if name.endswith("error") else f"{value:.4e}"
        click.echo(f"from the crossing on, mean {name}: {shown}")
    if "not_smoothed" in result.attrs:
        click.echo(f"nothing is smoothed: {result.attrs['not_smoothed']}")


@click.command("plot")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Picture: .png, .pdf, .svg, …."
)
@click.option(
    "--panels",
    default=None,
    help="Of loss, accuracy, sharpness, distance, spectrum, step_size and cost, separated by commas. Default: the "
    "first three where recorded, and the distance of two runs. Or edge alone: an optimiser beside flows.",
)
@click.option("--overwrite/--no-overwrite", default=False, show_default=True, help="Replace the picture.")
def plot_files(files: tuple[Path, ...], out: Path, panels: str | None, overwrite: bool) -> None:
    """Draw recorded runs."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise click.ClickException("Pictures need matplotlib: pip install matplotlib.") from error
    mpl.use("agg")
    from gradflow import plot

    try:
        check_output(out.absolute(), overwrite=overwrite)
        runs = {file: open_run(file) for file in files}
        labels = [label(run) for run in runs.values()]
        named = {
            name if labels.count(name) == 1 else f"{name}, {file.stem}": run
            for name, (file, run) in zip(labels, runs.items(), strict=True)
        }
        if panels == "edge":
            figure = plot.edge(*_optimiser_and_flows(named))
        else:
            figure = plot.figure(named, None if panels is None else panels.split(","))
        suffix = out.suffix.removeprefix(".")
        write_atomically(out, lambda target: figure.savefig(target, dpi=150, format=suffix or "png"))
    except (GradflowError, OSError) as error:
        raise failure(error) from error
    except ValueError as error:  # a format that matplotlib doesn't know
        raise click.ClickException(str(error)) from error
    click.echo(f"drawn in {out}")


def _optimiser_and_flows(named: dict[str, xr.Dataset]) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Return the one run of an optimiser among the runs, and the flows."""
    optimisers = {name: run for name, run in named.items() if is_optimiser(run)}
    if len(optimisers) != 1:
        raise click.ClickException(
            f"--panels edge draws the run of one optimiser beside flows; got {len(optimisers)} of optimisers."
        )
    flows = {name: run for name, run in named.items() if name not in optimisers}
    by_flow = {str(run.attrs.get("flow", "gradient")): run for run in flows.values()}
    (optimiser,) = optimisers.values()
    return optimiser, by_flow if len(by_flow) == len(flows) else flows


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """Print what a recorded run is, how it was made and how it ended."""
    try:
        record = open_run(file)
    except (GradflowError, OSError) as error:
        raise failure(error) from error
    if "gradflow_config" not in record.attrs:
        raise click.ClickException(f"{file} wasn't written by gradflow: it has no gradflow_config.")
    print_summary(record)
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


def print_summary(record: xr.Dataset) -> None:
    """Print a run in a few numbers."""
    labels = {
        "n_steps": "steps",
        "t": "final time",
        "train_loss": "training loss",
        "train_accuracy": "training accuracy",
        "midpoint_train_loss": "loss at midpoint",
        "predicted_train_loss": "predicted loss",
        "sigma_trace": "trace of Σ",
        "n_active": "active directions",
        "test_loss": "test loss",
        "test_accuracy": "test accuracy",
        "sharpness": "λ₁",
        "effective_sharpness": "effective λ₁",
        "stability_threshold": record.attrs.get("stability_threshold_formula", "threshold"),
        "n_gradients": "gradients",
        "n_hvps": "H·v",
        "wall_time": "seconds",
    }
    found = summary(record)
    if "stability_threshold_of" in found:
        bounded = labels[str(found["stability_threshold_of"])]
        found["stability_threshold_of"] = bounded
        labels |= {"stability_threshold_of": "bounds", "crossing_time": f"{bounded} crosses at t"}
    for name, value in found.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        click.echo(f"{labels.get(name, name):<20} {shown}")
