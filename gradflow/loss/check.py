"""The self-check of a loss: its chunks, its precision, its derivatives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from gradflow.errors import CheckWarning, GradflowError, InexactDerivativeError, InvalidInputError
from gradflow.loss.casts import Casts
from gradflow.loss.data import move
from gradflow.loss.differences import Derivatives, Reading, measure, measure_third
from gradflow.loss.modes import normalizes_batches
from gradflow.loss.trees import tensors_of

if TYPE_CHECKING:
    from gradflow.loss.data_loss import DataLoss
    from gradflow.loss.function import LossFunction

CheckLevel = Literal["full", "fast"]
LEVELS = get_args(CheckLevel)

CHECKED_SAMPLES = 8
# Vectors of the length of θ, in float64, that the differences and their graphs take.
_VECTORS = 24
# Rounding of a loss beyond which differences of it tell nothing.
_TOO_COARSE = 1e-5
_MEANT = "If that is meant, pass check=None."


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    value : float
        The relative difference that was measured; NaN if there is none.
    allowed : float
        What it may be.
    message : str
        What is wrong, or why there is no value; empty if all is well.
    """

    name: str
    value: float
    allowed: float
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing wrong was found; also where nothing was measured."""
        return not self.value > self.allowed


@dataclass(frozen=True)
class CheckReport:
    """What the self-check of a loss found.

    As a string it is a table.

    Attributes
    ----------
    findings : tuple of Finding
    """

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing wrong was found."""
        return all(finding.passed for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, name: str) -> Finding:
        return {finding.name: finding for finding in self.findings}[name]

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            sign, verdict = ("≤", "ok") if finding.passed else (">", "WRONG")
            value = f"{finding.value:.1e} {sign} {finding.allowed:.0e}"
            if math.isnan(finding.value):
                value, verdict = "not measured", ""
            lines.append(f"{finding.name:<10} {value:<16} {verdict:<6} {finding.message}".rstrip())
        return "\n".join(lines)


def examine(loss: LossFunction, theta: Tensor, level: CheckLevel) -> CheckReport:
    """Look at a loss near θ, on at most eight samples, in float64 if the net can; nothing is changed.

    Parameters
    ----------
    loss : LossFunction
        Samples and precision are looked at in its first term with a net.
    theta : Tensor, shape (P,)
    level : {"full", "fast"}
        "fast" leaves out the derivatives.
    """
    if level not in LEVELS:
        raise InvalidInputError(f'Expected level as "full" or "fast", got {level!r}.')
    network = loss.data_term
    # What is found here is not to stop the products that find it.
    few = loss.on_few_samples(CHECKED_SAMPLES)
    theta = theta.detach()
    try:
        seen = _watched(few, theta)
    except Exception as error:
        return CheckReport(
            (_unevaluated(error, certain=network is None or isinstance(error, GradflowError)),)
        )
    dtype, casts = list(seen.items())[-1]
    point = theta.to(dtype)
    findings = [] if network is None else [_samples(network, point, casts.eps)]
    findings.append(_precision(seen, theta.dtype))
    if level == "full":
        findings += _derivatives(few, point, casts.eps)
    return CheckReport(tuple(findings))


def examine_third(few: LossFunction, theta: Tensor) -> str | None:
    """Return why the third derivatives of a loss on a few samples are wrong near θ; None as far as is known."""
    try:
        dtype, casts = list(_watched(few, theta.detach()).items())[-1]
        if casts.eps > _TOO_COARSE:
            return None
        reading = measure_third(few, theta.to(dtype), casts.eps)
    except Exception:  # outside of the loss's domain, say; what isn't there is found when it is asked for
        return None
    if reading.passed:
        return None
    cause = f"Likely: the backward of {', '.join(few.functions)} leaves torch. " if few.functions else ""
    return (
        f"Third derivatives are wrong: products with them and central differences of H·v differ by {reading.value:.1e} "
        f"of their size. {cause}Use operations in plain torch. Gradients and H·v go on working; check=None lets wrong "
        "third derivatives through."
    )


def _watched(few: LossFunction, theta: Tensor) -> dict[torch.dtype, Casts]:
    """Evaluate a loss in θ's dtype, which must work, and in float64 if it can; return the casts that were seen."""
    network = few.data_term
    seen = {}
    for dtype in _dtypes(theta, network):
        casts = Casts(None if network is None else network.net, dtype)
        try:
            # A compiled net would be compiled anew under a mode.
            with nullcontext() if network is not None and _is_compiled(network.net) else casts:
                few.gradient(theta.to(dtype))
        except Exception:
            if dtype == theta.dtype:
                raise
        else:
            seen[dtype] = casts
    return seen


def _dtypes(theta: Tensor, network: DataLoss | None) -> list[torch.dtype]:
    """Return θ's dtype, and float64 if the whole net, what is frozen included, fits in memory once more."""
    tensors = [] if network is None else [*network.net.parameters(), *network.net.buffers()]
    fits = network is None or 8 * sum(t.numel() for t in tensors) <= network.memory_budget
    return list(dict.fromkeys((theta.dtype, torch.float64) if fits else (theta.dtype,)))


def _is_compiled(net: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") for m in net.modules())


def _unevaluated(error: Exception, *, certain: bool) -> Finding:
    """Say that there is no loss to look at; where it may be for want of samples, that is nothing wrong."""
    what = f"fails with {type(error).__name__}: {error}"
    if certain:
        return Finding("loss", math.inf, 0.0, f"The loss {what}")
    return Finding("loss", math.nan, 0.0, f"Not looked at: on at most {CHECKED_SAMPLES} samples it {what}")


def enforce(report: CheckReport, network: DataLoss) -> str | None:
    """Act on what was found at construction; return a warning that is due when the net is used in float64.

    A wrong gradient is an error: nothing that is computed from it means anything. A wrong product with the Hessian is
    one where a product is asked for, so that methods that take none can be used. What chunks change is an error if
    there are several. The rest is a warning.
    """
    later = None
    for finding in report:
        if finding.passed:
            if finding.name == "precision" and math.isfinite(finding.value):
                later = finding.message or None
            continue
        if finding.name == "loss":
            continue  # a later call tells
        if finding.name == "gradient":
            raise InexactDerivativeError(finding.message)
        if finding.name == "samples" and network.data.n_chunks > 1:
            raise InvalidInputError(finding.message)
        if finding.name in {"Hessian", "symmetry"}:
            if network.second.wrong is not None:
                continue
            network.second.wrong = finding.message
        warnings.warn(finding.message, CheckWarning, stacklevel=3)
    return later


def _precision(seen: dict[torch.dtype, Casts], dtype: torch.dtype) -> Finding:
    """Say which modules cast to fewer digits than θ has, or would if it had those of float64."""
    eps = torch.finfo(dtype).eps
    short = next((casts for casts in seen.values() if casts.found), None)
    if short is None:
        return Finding("precision", eps, eps)
    where = [f"{name} casts to {str(to).removeprefix('torch.')}" for name, to in short.found.items()]
    return Finding(
        "precision",
        short.eps,
        eps,
        f"The loss isn't computed in {str(short.dtype).removeprefix('torch.')}, but rounded to {short.eps:.0e}: "
        f"{'; '.join(where[:5])}{' …' if len(where) > 5 else ''}. Flows can't be followed to tolerances near that.",
    )


# ---------------------------------------------------------------------- samples


def _samples(network: DataLoss, theta: Tensor, eps: float) -> Finding:
    """Compare the net's outputs on some samples at once with those on two at a time; `eps` is what they round to."""
    limit = math.sqrt(eps)
    rows = network.data.spread(min(CHECKED_SAMPLES, network.data.n_samples))
    rows = rows[: len(rows) // 2 * 2]
    if network.data.of_batches:
        return Finding(
            "samples", math.nan, limit, "Not looked at: the data are batches, evaluated as they are."
        )
    if len(rows) < 4 or normalizes_batches(network.net):
        why = "batch-norm is in train mode" if len(rows) >= 4 else "it takes four samples"
        return Finding("samples", math.nan, limit, f"Not looked at: {why}.")
    chunks = [move(network.data.rows(part), theta.device, theta.dtype) for part in (rows, *rows.split(2))]
    if len({len(tensors_of(chunk)) for chunk in chunks}) > 1 or not _in_order(*chunks):
        return Finding("samples", math.nan, limit, "Not looked at: collating puts samples in another order.")
    try:
        found = [network.per_sample(theta, chunk) for chunk in chunks]
    except Exception as error:  # a net for so many samples and no others
        return Finding(
            "samples", math.nan, limit, f"Not looked at: {type(error).__name__} on {len(rows)} or 2 samples."
        )
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return Finding("samples", math.nan, limit, "Not looked at: the loss gives nothing for each sample.")
    whole, *parts = known
    if not hasattr(network, "criterion") and len(whole) != len(rows):
        return Finding(
            "samples", math.nan, limit, "Not looked at: the loss gives not one number for each sample."
        )
    value = _difference(whole, parts)
    if not value > limit:
        return Finding("samples", value, limit)
    causes = _couples(network.net)
    named = (
        f"Likely: {'; '.join(causes)}."
        if causes
        else "Likely: padding that isn't masked, or a dimension that isn't the batch."
    )
    message = (
        f"The net couples samples: its outputs on {len(rows)} samples at once and on two at a time differ by "
        f"{value:.1e} of their size. {named} "
    )
    if network.data.n_chunks > 1:
        message += (
            f"In {network.data.n_chunks} chunks that is another loss than at once: mend it, or pass "
            f"batch_size={network.data.n_samples}."
        )
    else:
        message += f"Other chunks would give another loss. {_MEANT}"
    return Finding("samples", value, limit, message)


def _in_order(whole: Any, *parts: Any) -> bool:
    """Whether samples lie in the whole as in the parts one after another; not so if collating sorts them."""
    columns = zip(tensors_of(whole), *map(tensors_of, parts), strict=True)
    return all(torch.equal(a, b) for tensor, *pieces in columns for a, b in _overlaps(tensor, pieces))


def _difference(whole: Tensor, parts: list[Tensor]) -> float:
    """Return the largest difference of outputs, relative to their size; NaN where they can't be set side by side."""
    overlaps = [(a, b) for a, b in _overlaps(whole, parts) if a.numel()]
    size = float(whole.abs().max()) if whole.numel() else 0.0
    if not overlaps or not 0 < size < math.inf:
        return math.nan
    return max(float((a - b).abs().max()) for a, b in overlaps) / size


def _overlaps(whole: Tensor, parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return what the whole and each part have in common: sequences may be padded to other lengths."""
    if whole.dim() == 0 or any(p.dim() != whole.dim() for p in parts) or sum(map(len, parts)) != len(whole):
        return []
    common = [slice(0, min(sizes)) for sizes in zip(*(t.shape[1:] for t in (whole, *parts)), strict=True)]
    rows = whole.split([len(part) for part in parts])
    return [(a[:, *common], b[:, *common]) for a, b in zip(rows, parts, strict=True)]


def _couples(net: nn.Module) -> list[str]:
    """Name the modules that take the samples along the second dimension."""
    kinds = (nn.RNNBase, nn.MultiheadAttention)
    return [
        f"{name or 'the net'} is {type(m).__name__} with batch_first=False"
        for name, m in net.named_modules()
        if isinstance(m, kinds) and not m.batch_first
    ]


# ---------------------------------------------------------------------- derivatives


def _derivatives(few: LossFunction, theta: Tensor, eps: float) -> list[Finding]:
    why = ""
    n_bytes = _VECTORS * theta.numel() * theta.element_size()
    if few.memory_budget is not None and n_bytes > few.memory_budget:
        why = f"Not looked at: differences would take {n_bytes / 1e9:.2g} GB, more than the memory budget."
    elif eps > _TOO_COARSE:
        why = "Not looked at: the loss is too coarse for differences."
    found = Derivatives()
    if not why:
        try:
            found = measure(few, theta, eps)
        except Exception as error:  # outside of the loss's domain, say
            why = f"Not looked at: near θ the loss fails with {type(error).__name__}: {error}"

    def finding(name: str, reading: Reading, message: str) -> Finding:
        if reading.measured:
            return Finding(name, reading.value, reading.allowed, "" if reading.passed else message)
        unknown = "kinks lie too close" if reading.kinked else "loss or gradient isn't finite near θ"
        return Finding(name, math.nan, reading.allowed, why or f"Not looked at: {unknown}.")

    gradient = finding("gradient", found.gradient, _gradient_message(found))
    if not gradient.passed:
        return [gradient]
    if found.no_products:
        return [gradient, Finding("Hessian", math.inf, 0.0, found.no_products)]
    message = _hessian_message(found)
    return [
        gradient,
        finding("Hessian", found.hessian, message),
        finding("symmetry", found.symmetry, message),
    ]


def _gradient_message(found: Derivatives) -> str:
    where = f", along {_listed(found.gradient_names)}" if found.gradient_names else ""
    cause = (
        f"Likely: the backward of {', '.join(found.functions)}."
        if found.functions
        else "Likely: a straight-through estimator, or a detach() or torch.no_grad() in forward."
    )
    return (
        f"The gradient isn't that of the loss: ∇L·v and central differences of L differ by "
        f"{found.gradient.value:.1e} of their size{where}. {cause} Nothing computed from it means anything. {_MEANT}"
    )


def _hessian_message(found: Derivatives) -> str:
    what = []
    if not found.hessian.passed:
        what.append(
            f"H·v and central differences of the gradient differ by {found.hessian.value:.1e} of their size, most in "
            f"{_listed(found.hessian_names)}"
        )
    if not found.symmetry.passed:
        what.append(f"uᵀHv and vᵀHu differ by {found.symmetry.value:.1e}")
    cause = f"Likely: the backward of {', '.join(found.functions)} leaves torch. " if found.functions else ""
    return (
        f"Products with the Hessian are wrong: {'; '.join(what)}. {cause}Use operations in plain torch. Gradients, "
        'and the methods that take nothing else, go on working; hvp="difference" takes differences of gradients '
        "for products; check=None lets wrong ones through."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
