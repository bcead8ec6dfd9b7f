"""``gradflow run``: integrate a problem and record it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from gradflow.api import integrate
from gradflow.cli import edge_of_stability, problem
from gradflow.cli.files import print_summary
from gradflow.cli.options import (
    ARGS,
    DEFAULT_METHOD,
    RENAMED,
    RunCommand,
    check_flow,
    check_method,
    complete_assignment,
    complete_name,
    failure,
    flag,
    flow_flags,
    flows,
    integrate_flags,
    method_flags,
    method_that_runs,
    methods,
    options_of,
    read_assignments,
)
from gradflow.cli.values import EVENT, name_events
from gradflow.errors import GradflowError, IntegrationWarning, InvalidInputError
from gradflow.integrators import METHODS
from gradflow.loss import LossFunction
from gradflow.record import check_output, write_atomically

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_OF_NAMED = ("dtype", "device", "batch_size", "data")


@click.command(cls=RunCommand)
@click.argument("words", nargs=-1, required=True, metavar="PROBLEM", shell_complete=problem.complete)
@click.option(
    "--method",
    shell_complete=complete_name(methods),
    help=f"How to integrate: see gradflow methods. Default: {DEFAULT_METHOD}.",
)
@click.option(
    "-o", "method_options", multiple=True, metavar="NAME=VALUE", shell_complete=complete_assignment,
    help="An option of the method; may be repeated. --NAME VALUE does as well.",
)  # fmt: skip
@click.option(
    "--flow",
    shell_complete=complete_name(flows),
    help="What to integrate: see gradflow flows. Default: gradient.",
)
@click.option(
    "-f", "flow_options", multiple=True, metavar="NAME=VALUE", shell_complete=complete_assignment,
    help="An option of the flow; also as --NAME VALUE.",
)  # fmt: skip
@click.option(
    "--event", "events", multiple=True, type=EVENT, metavar="NAME=VALUE[:rising|:falling][!]",
    help="Record where loss, accuracy, gradient_norm or sharpness crosses a value; ! ends the run there.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the initial weights.")
@click.option(
    "--dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True, help="Of everything."
)
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@click.option("--batch-size", type=int, help="Samples processed at once. Default: all that fit.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Directory of CIFAR-10. Default: $GRADFLOW_DATA."
)
@click.option(
    "--test/--no-test", default=True, show_default=True, help="Record loss and accuracy on the test set."
)
@click.option(
    "--out-dir", type=click.Path(path_type=Path), metavar="DIRECTORY",
    help="Not --out: a file in it, named by problem, seed, method and options.",
)  # fmt: skip
@click.option(
    "--resume",
    is_flag=False,
    flag_value="checkpoint",
    type=click.Choice(["checkpoint", "auto"]),
    help="Go on with the run of --out from its last checkpoint; auto: or start it, or leave it if it has ended.",
)
@click.option(
    "--save-model/--no-save-model", default=False, help="Write the final weights to NAME.pt beside NAME.nc."
)
@click.pass_context
def run(ctx: click.Context, words: tuple[str, ...], **given: Any) -> None:
    """Run a method on a PROBLEM and record it.

    PROBLEM is DATASET NET CRITERION, or MODULE:FUNCTION, a function of your own that returns a loss, (loss, test) or
    (loss, test, θ₀). Two examples:

    \b
    gradflow run digits fc-tanh mse --method rk4 --t-max 5 --n-eigs 2 --out a.nc
    gradflow run mine:problem --method gd -o lr=0.1 --max-steps 100 --out b.nc

    DATASET is digits, chebyshev-K-N, linear-50-50, cifar10, or cifar10-1k, -2k, -5k, -10k, -20k for its first images.
    NET is fc-ACTIVATION, with -depthN, cnn-, cnn-avgpool- or cnn-bn-ACTIVATION (tanh, relu, gelu, elu, hardtanh,
    softplus), vgg11, vgg11-bn, resnet32, deeplinear or regression. CRITERION is mse or ce.

    A CADENCE is a time (0.5), steps (10steps), steps of a size (10steps@0.01), or times: T1,T2,… or log:FIRST:LAST:N.

    With --method or --flow NAME, this help ends with the options of both. The flags of gd.py and flow.py (Cohen et al.
    2021) work too, with their defaults.
    """  # noqa: D301
    chosen = edge_of_stability.translate(given)
    try:
        method, flow = check_method(chosen.pop("method")), chosen.pop("flow")
        runs = check_method(method_that_runs(ctx.meta[ARGS])) if method == DEFAULT_METHOD else method
        flow_options = _flow_options(flow, runs, chosen)
        method_options = _method_options(runs, chosen)
        seed, test, out_dir, resume, save_model = (
            chosen.pop(name) for name in ("seed", "test", "out_dir", "resume", "save_model")
        )
        of_named = {name: chosen.pop(name) for name in _OF_NAMED}
        of_named["dtype"] = _DTYPES[of_named["dtype"]]
        if len(words) == 1 and ":" in words[0]:
            _refuse_options_of_named(ctx, words[0])
        train, test_loss, params = problem.load(words, seed, of_named)
        if out_dir is not None:
            names = (*words[:2], f"seed_{seed}", *words[2:], *([flow] if flow else []), method)
            chosen["out"] = _name(out_dir, chosen["out"], names, flow_options | method_options)
        out = chosen["out"]
        if resume and out is None:
            raise click.UsageError("--resume needs the name of the run: give --out or --out-dir.")
        model = None
        if save_model:
            _refuse_callable(train, words)
            # The weights beside a run that has ended are its own.
            model = _model_path(out, overwrite=chosen["overwrite"] or (resume == "auto" and out.exists()))
        chosen["events"] = name_events(chosen["events"])
        if flow is not None:
            chosen |= {"flow": flow, "flow_options": flow_options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IntegrationWarning)  # said below
            record = integrate(
                train,
                params,
                method=method,
                test=test_loss if test else None,
                method_options=method_options,
                resume=out if resume == "checkpoint" else resume,
                **chosen,
            )
    except GradflowError as error:
        raise failure(error) from error
    except KeyboardInterrupt:
        out = chosen.get("out")
        where = "" if out is None else f" What it recorded is kept; --resume goes on: {out}"
        click.echo(f"interrupted.{where}", err=True)
        sys.exit(130)
    print_summary(record)
    if out is not None:
        click.echo(f"recorded in {out}")
    if model is not None:
        state = train.state_dict(torch.from_numpy(record.params.values))
        write_atomically(model, lambda target: torch.save(state, target))
        click.echo(f"weights in {model}")
    if "error_estimate_message" in record.attrs:
        click.echo(f"Warning: {record.attrs['error_estimate_message']}", err=True)
    if not record.attrs["success"]:
        click.echo(f"Error: {record.attrs['message']}", err=True)
        sys.exit(1)


run.params += [*integrate_flags(), *edge_of_stability.flags()]


def _method_options(method: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the method out of what was chosen, as flags and by -o."""
    of_flags = {flag_name: name for name, flag_name in RENAMED.items()}
    names = {str(option.name) for option in method_flags(method)}
    names |= {"momentum", "max_step"} & set(chosen)  # may come from flags of gd.py and flow.py
    flagged = {of_flags.get(name, name): chosen.pop(name) for name in names}
    found = {name: value for name, value in flagged.items() if value is not None}
    assigned = read_assignments(
        "-o", chosen.pop("method_options"), options_of(METHODS[method]), f"Method {method!r}"
    )
    if twice := found.keys() & assigned.keys():
        name = min(twice)
        raise click.UsageError(f"-o {name} and {flag(RENAMED.get(name, name))} say the same; give one.")
    return found | assigned


def _flow_options(flow: str | None, method: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the flow out of what was chosen, as flags and by -f."""
    given = chosen.pop("flow_options")
    if flow is None:
        if given:
            raise click.UsageError("-f is an option of a flow: give --flow.")
        return {}
    check_flow(flow)
    known = options_of(flows()[flow])
    assigned = read_assignments("-f", given, known, f"Flow {flow!r}")
    ours = {param.name for param in run.params}  # --seed is that of the weights, whatever options a flow has
    flagged = {str(option.name) for option in flow_flags(flows()[flow])} & chosen.keys() - ours
    shared = flagged & {str(option.name) for option in method_flags(method)}
    for name in shared:
        if chosen[name] is None or name in assigned:  # which leaves the flag to the method
            flagged.remove(name)
        elif not any(text.partition("=")[0] == name for text in chosen["method_options"]):
            raise click.UsageError(
                f"Flow {flow!r} and method {method!r} both have an option {name!r}: give -f {name}=… or -o {name}=…."
            )
    found = {name: value for name in flagged if (value := chosen.pop(name)) is not None}
    chosen |= dict.fromkeys(flagged & shared)
    if twice := found.keys() & assigned.keys():
        raise click.UsageError(f"-f {min(twice)} and {flag(min(twice))} say the same; give one.")
    found |= assigned
    if needed := [
        option.name for option in known if option.default == "required" and option.name not in found
    ]:
        raise click.UsageError(f"Flow {flow!r} needs {', '.join(needed)}: give -f {needed[0]}=….")
    return found


def _refuse_callable(loss: LossFunction, words: tuple[str, ...]) -> None:
    """Refuse a loss without a network, whose weights could be written, before the run."""
    try:
        loss.parameters()
    except InvalidInputError:
        raise click.UsageError(f"--save-model needs a network; the loss of {words[0]} has none.") from None


def _refuse_options_of_named(ctx: click.Context, name: str) -> None:
    """Refuse what a problem of the user's own decides itself."""
    for option in (*_OF_NAMED, "physical_batch_size"):
        if ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag(option)} is for the named problems: {name} makes its loss itself.")


def _name(directory: Path, out: Path | None, names: tuple[str, ...], options: Mapping[str, Any]) -> Path:
    """Make the path of a run in a directory of many, and the directories on the way."""
    if out is not None:
        raise click.UsageError("--out and --out-dir were given; give one.")
    stem = "_".join(f"{name}_{value}" for name, value in sorted(options.items())) or "default"
    path = directory.joinpath(*(name.replace(":", "-") for name in names), f"{stem}.nc")
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
