"""A loss that a function computes of a network and a batch, whatever a batch is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.errors import CriterionError, InvalidInputError, InvalidTypeError
from gradflow.loss.accuracy import Tally
from gradflow.loss.batch_probe import BatchProbe
from gradflow.loss.batches import as_data
from gradflow.loss.capture import Compile
from gradflow.loss.check import LEVELS, CheckLevel
from gradflow.loss.data_loss import DataLoss, Mode
from gradflow.loss.difference import Products
from gradflow.loss.minibatch import MiniBatch
from gradflow.loss.results import Kind, Result, number, read
from gradflow.loss.trees import map_tensors

#: Of a net and a batch.
BatchFunction = Callable[[nn.Module, Any], Any]

#: Weights that were computed in another dtype, or in another order, agree to this.
_WEIGHTS_AGREE = 1e-5

#: The metric that is the accuracy of the loss.
ACCURACY = "train_accuracy"


class BatchLoss(DataLoss):
    """L(θ) = Σ sums / Σ weights over batches of ``loss_fn(net, batch)``; made by :class:`LossFunction`.

    Parameters are those of :class:`LossFunction`. None of them is changed.

    Attributes
    ----------
    loss_fn : callable
        As given, or the net's own loss.
    kind : {"samples", "sum", "mean"}
        What it returns.
    needs_grad : bool
        It differentiates by itself, so that it can't be evaluated without gradients, nor with weights that have none.
    metrics : dict of str to callable
        As given, and what `loss_fn` returned beside the loss; without the accuracy.
    """

    kind: Kind
    metrics: dict[str, BatchFunction]
    needs_grad = False

    def __init__(
        self,
        dataset: Any,
        *,
        net: nn.Module,
        loss_fn: BatchFunction | None = None,
        weight: Callable[[Any], Any] | None = None,
        metrics: Mapping[str, BatchFunction] | None = None,
        batch_size: int | None = None,
        memory_budget: int | None = None,
        allow_tf32: bool = False,
        mode: Mode | None = None,
        hvp: Products = "exact",
        check: CheckLevel | None = "full",
        compile: Compile = "auto",
        **dataloader_kwargs: Any,
    ) -> None:
        if compile is True:
            raise InvalidInputError(
                "compile=True is for a criterion; functions of net and batch aren't captured."
            )
        if check is not None and check not in LEVELS:
            raise InvalidInputError(f'Expected check as "full", "fast" or None, got {check!r}.')
        _check_functions(net, loss_fn, weight, metrics)
        data, batch_size = as_data(dataset, batch_size, dataloader_kwargs)
        self.loss_fn: BatchFunction = own_loss if loss_fn is None else loss_fn
        self.weight = weight
        named = dict(metrics or {})
        self._accuracy = named.pop(ACCURACY, None)
        self._differentiating: set[BatchFunction] = set()  # of the metrics
        self.classifies = self._accuracy is not None
        self.metrics = named
        super().__init__(data, net, mode=mode, hvp=hvp, memory_budget=memory_budget, allow_tf32=allow_tf32)
        try:
            BatchProbe(self, batch_size).run()
        except Exception as error:
            if loss_fn is None:
                error.add_note(
                    "The net was called with a batch, net(**batch), for its own loss. If it has none, write "
                    "LossFunction(dataset, criterion, net), or LossFunction(dataset, loss_fn=f, net=net)."
                )
            raise
        self._examine(check)

    # ------------------------------------------------------------------ parts of the data

    def of_rows(self, rows: Tensor) -> BatchLoss:
        """Return the loss over some items of the data, by their numbers, shape (b,), int64; nothing is checked."""
        return MiniBatchOfBatches(self, rows)

    def subset(self, rows: Sequence[int]) -> BatchLoss:
        """Return the loss over some samples, by their numbers, in chunks of the same size; it shares the network."""
        if self._mode is None:
            self.check_modes()
        part = BatchLoss(
            self.data.part(rows),
            net=self.net,
            loss_fn=self.loss_fn,
            weight=self.weight,
            metrics=dict(self.metrics) | ({ACCURACY: self._accuracy} if self._accuracy else {}),
            batch_size=self.data.chunk_size,
            memory_budget=self.memory_budget,
            allow_tf32=self._allow_tf32,
            mode=self._mode,
            hvp=self._hvp,
            check=None,
        )
        part.second = self.second
        part._labels = dict(self._labels)
        return part

    def describe(self) -> dict[str, Any]:
        """Name net, function, data, and how they are cut into chunks."""
        name = getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
        return super().describe() | {"criterion": name, "reduction": self.kind}

    # ------------------------------------------------------------------ chunks

    def result(self, chunk: Any) -> Result:
        """Return what the function computes of a chunk, with the leaves that are in place."""
        return read(self._call(self.loss_fn, chunk))

    def _call(self, function: BatchFunction, chunk: Any) -> Any:
        self.renew_buffers()
        # Copies: what a function writes to its batch, or asks of its tensors, stays with it.
        with torch.enable_grad() if self.needs_grad else nullcontext():
            return function(self.net, map_tensors(lambda t: t.detach().clone(), chunk))

    def _metric(self, name: str, function: BatchFunction, chunk: Any) -> Result:
        """Return what a metric computes of a chunk; it may differentiate by itself."""
        differentiates = function in self._differentiating
        try:
            with torch.set_grad_enabled(differentiates):
                return read(self._call(function, chunk), name)
        except RuntimeError:
            if differentiates:
                raise
            with torch.enable_grad():
                found = read(self._call(function, chunk), name)
            self._differentiating.add(function)
            return found

    def placed(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the leaves, or the same with gradients, which a function that differentiates may ask for."""
        if not self.needs_grad:
            return leaves
        return [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in leaves]

    @property
    def counts_without_weight(self) -> bool:  # type: ignore[override]
        """Sums enter whatever their weights are."""
        return self.kind != "mean"

    def share(self, chunk: Any, d: float, total: float, tally: Tally | None) -> Tensor:
        """Return the share of the loss that a chunk has, a scalar, with the leaves that are in place."""
        result = self.result(chunk)
        if result.kind != self.kind:
            raise CriterionError(
                f"loss_fn returned other things when the loss was made ({self.kind}) than now ({result.kind})."
            )
        d, total = self.weights_of(result, d, total)
        if tally is not None and self._accuracy is not None:
            found = self._metric(ACCURACY, self._accuracy, chunk)
            weight = d if found.kind == "mean" else found.weight
            tally.add_share(found.mean(weight) if weight else found.value, weight)
        assert self._placement is not None
        return result.share(d, total).to(self._placement.leaves[0].dtype)

    def weights_of(self, result: Result, d: float, total: float) -> tuple[float, float]:
        """Return the weight of a chunk and that of all; refuse one that has changed since the loss was made."""
        if result.kind != "mean" and not math.isclose(result.weight, d, rel_tol=_WEIGHTS_AGREE):
            raise CriterionError(
                f"loss_fn weighs a batch by {result.weight:g}, and weighed it by {d:g} when the loss was made. What "
                "a sum is divided by must not depend on θ."
            )
        return d, total

    def value_on(self, chunk: Any) -> Tensor:
        """Return the mean over a chunk, with the leaves that are in place."""
        result = self.result(chunk)
        return result.mean(result.weight)

    def _value(self, theta: Tensor) -> Tensor:
        value = super()._value(theta)
        # What the function asked gradients for has a graph of its own.
        return value if theta.requires_grad and torch.is_grad_enabled() else value.detach()

    def per_sample(self, theta: Tensor, chunk: Any) -> Tensor | None:
        """Return the losses of samples at θ, shape (n,), on a chunk; None if the function gives others."""
        if self.kind != "samples":
            return None
        with self.settings(theta), torch.no_grad(), self.in_place(self.leaves(theta.detach())):
            each = self.result(chunk).each
        return None if each is None else each.detach()

    def denominator(self, chunk: Any, n_items: int) -> float:
        """Return how much a chunk has of what the loss averages over."""
        if self.weight is not None:
            return number(self.weight(chunk), "weight(batch)")
        if self.kind == "mean":
            return float(n_items)
        with torch.no_grad():
            return self.result(chunk).weight

    # ------------------------------------------------------------------ metrics

    def take_metrics(self, chunk: Any) -> None:
        """Take what the function returns beside the loss, if it is of a form that a metric may have, for metrics."""
        returned = self._call(self.loss_fn, chunk)
        if not isinstance(returned, Mapping) or self.loss_fn is own_loss:
            return
        for name in returned:
            if name == "loss" or name in self.metrics or not str(name).isidentifier():
                continue
            entry = _Entry(self.loss_fn, name)
            try:
                read(entry.of(returned))
            except CriterionError:  # outputs, say
                continue
            if name == ACCURACY:
                self._accuracy, self.classifies = self._accuracy or entry, True
            else:
                self.metrics[name] = entry

    def measure(self, theta: Tensor) -> dict[str, float]:
        """Return the mean of each metric over the data at θ; costs a forward pass for each."""
        self.check_theta(theta)
        sums = {name: [0.0, 0.0] for name in self.metrics}
        chunks, denominators = self.chunks(theta)
        with self.settings(theta), self.in_place(self.leaves(theta.detach())):
            for chunk, d in zip(chunks, denominators, strict=True):
                for name, function in self.metrics.items():
                    found = self._metric(name, function, chunk)
                    weight = d if found.kind == "mean" else found.weight
                    sums[name][0] += float(found.value.detach()) * (weight if found.kind == "mean" else 1.0)
                    sums[name][1] += weight
        return {name: total / weight if weight else torch.nan for name, (total, weight) in sums.items()}


class MiniBatchOfBatches(MiniBatch, BatchLoss):
    """The loss of a function over some items of its data."""

    def weights_of(self, result: Result, d: float, total: float) -> tuple[float, float]:
        """Return the weight of a chunk and that of all; those of the only chunk aren't known before."""
        return (result.weight, result.weight) if result.kind != "mean" and d == total else (d, total)


@dataclass(frozen=True)
class _Entry:
    """What a function returns under a name beside its loss."""

    function: BatchFunction
    name: str

    def __call__(self, net: nn.Module, batch: Any) -> Any:
        return self.of(self.function(net, batch))

    def of(self, returned: Mapping[str, Any]) -> Any:
        """Return the entry; a number as a tensor."""
        value = returned[self.name]
        if isinstance(value, bool | int | float):
            return torch.tensor(float(value), dtype=torch.float64)
        return value.double() if isinstance(value, Tensor) and not value.is_floating_point() else value


def own_loss(net: nn.Module, batch: Any) -> Any:
    """Return the loss that a net computes by itself, as Hugging Face's models do: ``net(**batch).loss``."""
    if isinstance(batch, Mapping):
        returned = net(**batch)
    elif isinstance(batch, tuple | list):
        returned = net(*batch)
    else:
        returned = net(batch)
    if isinstance(returned, Tensor) and returned.dim() > 1:
        raise CriterionError(
            f"The net returns a tensor of shape {tuple(returned.shape)}, and no loss. Pass a criterion, "
            "LossFunction(dataset, criterion, net), or a function of the net and a batch, "
            "LossFunction(dataset, loss_fn=f, net=net)."
        )
    return returned


def _check_functions(net: Any, loss_fn: Any, weight: Any, metrics: Any) -> None:
    if not isinstance(net, nn.Module):
        raise InvalidTypeError(f"Expected net= as a torch.nn.Module, got {type(net).__name__}.")
    for name, given in (("loss_fn", loss_fn), ("weight", weight)):
        if given is not None and (isinstance(given, type) or not callable(given)):
            takes = "the net and a batch" if name == "loss_fn" else "a batch"
            raise InvalidTypeError(f"Expected {name} as a function of {takes}, got {given!r}.")
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise InvalidTypeError(
            f"Expected metrics as a mapping of names to functions, got {type(metrics).__name__}."
        )
    for name, given in metrics.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise InvalidInputError(
                f"Expected the name of a metric as one that a variable can have, got {name!r}."
            )
        if not callable(given):
            raise InvalidTypeError(f"Expected the metric {name!r} as a function of the net and a batch.")
