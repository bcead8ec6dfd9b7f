"""What a criterion averages over: found by comparing its values on parts of the data with that on the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradflow.errors import CriterionError
from gradflow.loss.criteria import ChunkedCriterion, Weighting
from gradflow.loss.data import ChunkedData


class Evaluated(NamedTuple):
    """The net's outputs on some items of the data set, with their targets, as they are collated."""

    output: Tensor
    target: Tensor
    n_items: int


def weigh_chunks(
    data: ChunkedData,
    chunked: ChunkedCriterion,
    criterion: Callable[..., Tensor],
    outputs: Callable[[Tensor], Evaluated],
    rows: Tensor,
    remedy: str,
) -> list[float]:
    """Return each chunk's denominator; fix what `chunked` weighs by.

    Parameters
    ----------
    data : ChunkedData
    chunked : ChunkedCriterion
    criterion : callable
        Where the outputs are.
    outputs : callable
        Evaluates the net on the items of some rows.
    rows : Tensor, shape (m,), int64
        Items to try the criterion on, at least two.
    remedy : str
        What to do without chunks, for errors.

    Raises
    ------
    CriterionError
        If the criterion's values on parts don't add up to that on the whole.
    """

    def passing(rows: Tensor, sizes: Sequence[int]) -> list[Weighting]:
        whole, *parts = map(outputs, (rows, *rows.split(list(sizes))))
        return additive_weightings(chunked, criterion, whole, parts, remedy)

    items = data.items_per_chunk()
    found = passing(rows, unequal(len(rows), single=min(items) == 1))
    if chunked.reduction != "mean":
        return [float(n) for n in items]
    targets = (target for _, target in data.host_chunks())
    weights = [
        {by: chunked.denominator(target, n, by) for by in found}
        for target, n in zip(targets, items, strict=True)
    ]
    # Those that agree on the items tried may differ on chunks that are made otherwise.
    while (pair := unlike(weights, found)) is not None:
        spans = [
            torch.arange(i * data.chunk_size, i * data.chunk_size + items[i], device="cpu") for i in pair
        ]
        still = [by for by in passing(torch.cat(spans), [items[i] for i in pair]) if by in found]
        if len(still) in {0, len(found)}:
            raise CriterionError(
                f"What the criterion averages over in a chunk can't be told: its {' or its '.join(found)}. {remedy}"
            )
        found = still
    chunked.weighted_by = found[0]
    return [weight[found[0]] for weight in weights]


def unequal(n: int, *, single: bool) -> list[int]:
    """Cut n ≥ 2 samples into parts of unequal size, the last of a single one if there is such a chunk."""
    last = int(single)
    short = min(max(2 - last, n // 3), n - 1)
    return [size for size in (n - short - last, short, last) if size > 0]


def unlike(weights: Sequence[Mapping[Any, float]], found: Sequence[Any]) -> list[int] | None:
    """Return two chunks that two weightings weigh by unlike ratios; None where all weightings are proportional."""
    for other in found[1:]:
        ratios = [weight[other] / weight[found[0]] if weight[found[0]] else 1.0 for weight in weights]
        if max(ratios) > min(ratios) * (1 + 1e-12):
            return sorted((ratios.index(min(ratios)), ratios.index(max(ratios))))
    return None


def additive_weightings(
    chunked: ChunkedCriterion,
    evaluate: Callable[..., Tensor],
    whole: Evaluated,
    parts: Sequence[Evaluated],
    remedy: str,
) -> list[Weighting]:
    """Return the weightings by which a criterion's values on parts add up to its value on the whole.

    Tried with the net's outputs, and with random ones: where all samples have equal losses (a head that starts at
    zero), the net's outputs tell nothing.

    Parameters
    ----------
    chunked : ChunkedCriterion
    evaluate : callable
        The criterion, where the outputs are.
    whole, parts : Evaluated
        Some items at once, and the same items in parts.
    remedy : str
        What the error says is to be done.

    Raises
    ------
    CriterionError
        If there is none.
    """
    passing = chunked.candidates(whole.target)
    for at_once, in_parts in _trials(whole, parts):
        try:
            value = _value(chunked, evaluate, at_once)
        except Exception:
            if at_once is whole:
                raise
            continue  # random outputs may be none that the criterion takes
        if not isfinite(value):
            continue
        try:
            sums = {by: _sum_of_shares(chunked, evaluate, in_parts, by) for by in passing}
        except Exception as error:
            raise CriterionError(
                f"The criterion can't be computed in chunks: on fewer than {whole.n_items} samples it fails with "
                f"{type(error).__name__}: {error}. {remedy}"
            ) from error
        scale = max(abs(value), _term_size(evaluate, at_once))
        tolerance = 1e3 * torch.finfo(whole.output.dtype).eps
        bounds = {by: tolerance * max(scale, size) for by, (_, size) in sums.items()}
        first = next(iter(sums.values()))[0]
        passing = [by for by in passing if abs(sums[by][0] - value) <= bounds[by]]  # not so for NaN
        if not passing:
            raise CriterionError(_not_additive(chunked, evaluate, value, first, whole, in_parts, remedy))
    return passing


def _value(chunked: ChunkedCriterion, evaluate: Callable[..., Tensor], items: Evaluated) -> float:
    value = float(evaluate(items.output.clone(), items.target.clone()).sum())
    return value if chunked.reduction == "mean" else value / items.n_items


def _sum_of_shares(
    chunked: ChunkedCriterion, evaluate: Callable[..., Tensor], parts: Sequence[Evaluated], by: Weighting
) -> tuple[float, float]:
    """Return the sum of the shares of parts, and that of their absolute values."""
    weights = [chunked.denominator(part.target, part.n_items, by) for part in parts]
    total = sum(weights)
    shares = [
        _value(chunked, evaluate, part) * weight / total
        for part, weight in zip(parts, weights, strict=True)
        if weight > 0
    ]
    return sum(shares), sum(map(abs, shares))


def _term_size(evaluate: Callable[..., Tensor], items: Evaluated) -> float:
    """Return the size of the terms: where terms of either sign cancel, rounding is relative to them."""
    if len(items.output) != len(items.target):
        return 0.0
    try:
        single = [
            abs(float(evaluate(items.output[i : i + 1].clone(), items.target[i : i + 1].clone()).sum()))
            for i in range(min(len(items.output), 16))
        ]
    except Exception:  # not on one sample; that is found elsewhere where it matters
        return 0.0
    return max(filter(isfinite, single), default=0.0)


def _not_additive(
    chunked: ChunkedCriterion,
    evaluate: Callable[..., Tensor],
    value: float,
    got: float,
    whole: Evaluated,
    parts: Sequence[Evaluated],
    remedy: str,
) -> str:
    hint = ""
    if abs(sum(_value(chunked, evaluate, part) for part in parts) - value) <= 1e-3 * abs(value):
        hint = " If it sums over samples, divide by their number, len(output)."
    elif not whole.target.is_floating_point() and whole.target.dim() > 1:
        hint = (
            " A mean over the tokens that count works in chunks as torch.nn.CrossEntropyLoss(ignore_index=…) with "
            "logits of shape (B, V, T), or as gradflow.token_cross_entropy with (B, T, V)."
        )
    return (
        f"The criterion can't be computed in chunks: on {whole.n_items} samples at once it gives {value:.9g}, over "
        f"chunks {got:.9g}. Expected a mean over samples; this one couples samples, or is normalised otherwise. "
        f"{remedy}{hint} Outputs and targets have shapes {tuple(whole.output.shape)} and {tuple(whole.target.shape)}."
    )


def _trials(whole: Evaluated, parts: Sequence[Evaluated]) -> Iterator[tuple[Evaluated, Sequence[Evaluated]]]:
    """Return outputs on the whole, and the same on the parts."""
    targets = _cut(whole.target, [part.target.shape for part in parts])
    matched = targets is not None and all(
        torch.equal(t, p.target) for t, p in zip(targets, parts, strict=True)
    )
    # Numbers that are logits, probabilities, rates and variances; drawn from a generator of their own.
    draw = torch.rand(whole.output.shape, generator=torch.Generator().manual_seed(0), device="cpu")
    random = (0.05 + 0.9 * draw).to(whole.output)
    for items in (whole, whole._replace(output=random)):
        # Cut, not evaluated: batch-norm in train mode has other statistics on the parts.
        outputs = _cut(items.output, [part.output.shape for part in parts]) if matched else None
        if outputs is not None:
            yield items, [part._replace(output=o) for part, o in zip(parts, outputs, strict=True)]
        elif items is whole:
            yield whole, parts


def _cut(whole: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor] | None:
    """Cut a tensor into parts that were collated of some items each; None where it isn't made of such parts.

    Collating joins along one dimension; where it pads, the others are shorter in a part.
    """
    sizes = list(zip(*shapes, strict=True)) if all(len(s) == whole.dim() for s in shapes) else []
    joined = next((d for d, of_parts in enumerate(sizes) if sum(of_parts) == whole.shape[d]), None)
    if joined is None or any(
        size > n for shape in shapes for size, n in zip(shape, whole.shape, strict=True)
    ):
        return None
    pieces = whole.split(list(sizes[joined]), joined)
    return [piece[tuple(slice(n) for n in shape)] for piece, shape in zip(pieces, shapes, strict=True)]
