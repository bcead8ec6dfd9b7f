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
from gradflow.analysis import compare, label, summary
from gradflow.api import integrate
from gradflow.cli import edge_of_stability
from gradflow.cli.options import RENAMED, flag, integrate_options, method_options, options
from gradflow.errors import GradflowError, IntegrationWarning
from gradflow.integrators import METHODS
from gradflow.problems import cifar
from gradflow.record import check_output, open_run, write_atomically

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="gradflow")
def main() -> None:
    """Integrate the gradient flow of neural networks, and look at the records."""


@options(edge_of_stability.flags)
@options(method_options)
@options(integrate_options)
@main.command()
@click.argument("dataset")
@click.argument("arch")
@click.argument("loss")
@click.option("--method", default=None, help=f"How to integrate: {', '.join(METHODS)}.")
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
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Instead of --out: write to DATASET/ARCH/seed_SEED/LOSS/METHOD/OPTIONS.nc in this directory.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="checkpoint",
    default=None,
    type=click.Choice(["checkpoint", "auto"]),
    help="Go on with the run that was to become --out, from its last checkpoint, which must be there; auto: start it "
    "if there is nothing yet, and leave it if it has ended. All else must be as it was.",
)
@click.option(
    "--save-model/--no-save-model",
    default=False,
    show_default=True,
    help="Write the final weights beside the record, NAME.pt for NAME.nc, as a state_dict of the network.",
)
def run(dataset: str, arch: str, loss: str, **given: Any) -> None:
    """Run a METHOD on a named problem and record it.

    DATASET is digits, chebyshev-K-N, linear-50-50, cifar10, or cifar10-1k, -2k, -5k, -10k, -20k for its first images.
    ARCH is fc-ACTIVATION, with -depthN, cnn-, cnn-avgpool- or cnn-bn-ACTIVATION (tanh, relu, elu, hardtanh, softplus),
    vgg11, vgg11-bn, resnet32, deeplinear or regression. LOSS is mse or ce. An example:

    gradflow run digits fc-tanh mse --method rk4 --t-max 5 --n-eigs 2 --out flow.nc

    The flags of gd.py and flow.py (Cohen et al. 2021) are understood as well, with their defaults and underscores.
    """
    chosen = edge_of_stability.translate(given)
    method, seed = chosen.pop("method"), chosen.pop("seed")
    if method is None:
        raise click.UsageError("Missing option '--method'.")
    of_problem = {name: chosen.pop(name) for name in ("dtype", "device", "batch_size", "data")}
    test, out_dir, save_model, resume = (
        chosen.pop(name) for name in ("test", "out_dir", "save_model", "resume")
    )
    own = {option.name for option in method_options()}
    names = {flag: name for name, flag in RENAMED.items()}
    method_chosen = {names.get(k, k): v for k, v in chosen.items() if k in own and v is not None}
    rest = {k: v for k, v in chosen.items() if k not in own}
    try:
        train, test_loss, params = problems.load(
            dataset,
            arch,
            loss,
            seed=seed,
            **(of_problem | {"dtype": _DTYPES[of_problem["dtype"]]}),
        )
        if out_dir is not None:
            rest["out"] = _name(
                out_dir, rest["out"], dataset, arch, f"seed_{seed}", loss, method, method_chosen
            )
        if resume and rest["out"] is None:
            raise click.UsageError("--resume needs the name of the run: give --out or --out-dir.")
        rest["resume"] = rest["out"] if resume == "checkpoint" else resume
        # The weights beside a run that has ended are its own.
        replace = rest["overwrite"] or (resume == "auto" and rest["out"].exists())
        model = _model_path(rest["out"], overwrite=replace) if save_model else None
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
    except KeyboardInterrupt:
        where = "" if rest["out"] is None else f" What it recorded is kept; --resume goes on: {rest['out']}"
        click.echo(f"interrupted.{where}", err=True)
        sys.exit(130)
    _print_summary(record)
    if rest["out"] is not None:
        click.echo(f"recorded in {rest['out']}")
    if model is not None:
        state = train.state_dict(torch.from_numpy(record.params.values))
        write_atomically(model, lambda target: torch.save(state, target))
        click.echo(f"weights in {model}")
    if not record.attrs["success"]:
        click.echo(f"Error: {record.attrs['message']}", err=True)
        sys.exit(1)


def _name(directory: Path, out: Path | None, *parts: Any) -> Path:
    """Make the path of a run in a directory of many, and the directories on the way."""
    if out is not None:
        raise click.UsageError("--out and --out-dir were given; give one.")
    *folders, method_chosen = parts
    options = "_".join(f"{name}_{value}" for name, value in sorted(method_chosen.items()))
    path = directory.joinpath(
        *(str(folder).replace(":", "-") for folder in folders), f"{options or 'default'}.nc"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _model_path(out: Path | None, *, overwrite: bool) -> Path:
    if out is None:
        raise click.UsageError("--save-model writes beside the record: give --out or --out-dir.")
    path = out.with_suffix(".pt")
    if path == out:
        raise click.UsageError(f"--save-model would write over the record {out}. Name the record NAME.nc.")
    check_output(path.absolute(), overwrite=overwrite)
    return path


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
            said = result[f"crossing_time_{name}"].attrs["long_name"]
            click.echo(f"{name}: {said}: t = {crossing:.6g}")
    if out is not None:
        write_atomically(out, lambda target: result.to_netcdf(target, engine="netcdf4"))
        click.echo(f"written to {out}")


@main.command("plot")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Picture: .png, .pdf, .svg, …."
)
@click.option(
    "--panels",
    default=None,
    help="Of loss, accuracy, sharpness, distance, spectrum, step_size and cost, separated by commas. Default: the "
    "first three where recorded, and the distance of two runs.",
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
        figure = plot.figure(named, None if panels is None else panels.split(","))
        suffix = out.suffix.removeprefix(".")
        write_atomically(out, lambda target: figure.savefig(target, dpi=150, format=suffix or "png"))
    except (GradflowError, OSError) as error:
        raise _failure(error) from error
    except ValueError as error:  # a format that matplotlib doesn't know
        raise click.ClickException(str(error)) from error
    click.echo(f"drawn in {out}")


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
    text = re.sub(r"\b([a-z]\w*)=(True|…)", lambda m: flag(m[1]), str(error))
    names = {option.name for option in main.commands["run"].params if isinstance(option, click.Option)}
    return click.ClickException(
        re.sub(r"(?<![-\w])[a-z]+(?:_[a-z]+)+\b", lambda m: flag(m[0]) if m[0] in names else m[0], text)
    )


def _print_summary(record: xr.Dataset) -> None:
    labels = {
        "n_steps": "steps",
        "t": "final time",
        "train_loss": "training loss",
        "train_accuracy": "training accuracy",
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
