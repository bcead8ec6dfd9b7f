"""What is found out about a function of a network and a batch, and refused if it can't be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradflow.errors import CriterionError, InvalidInputError
from gradflow.loss.additivity import unequal, unlike
from gradflow.loss.casts import Casts
from gradflow.loss.data import move
from gradflow.loss.modes import normalizes_batches
from gradflow.loss.probe import SAMPLES, Probe
from gradflow.loss.results import Result, weighted_mean
from gradflow.loss.second_derivatives import graph_nodes
from gradflow.loss.trees import tensors_of

if TYPE_CHECKING:
    from gradflow.loss.batch_loss import BatchLoss

#: Weights of a batch of so many items, by what they count.
Weighing = Callable[[Any, int], float]
#: What values at once and in parts may differ by where the net computes fewer digits, in their eps, and at most.
_COARSE, _COARSEST = 50.0, 1e-2
#: Least size of weights elsewhere.
_ELSE = 0.1
#: The label that Hugging Face's losses leave out.
_IGNORED = -100


class BatchProbe(Probe):
    """Finds out what a function returns, what it takes, and how batches are weighed.

    Parameters
    ----------
    loss : BatchLoss
        With net, function and data.
    batch_size : int or None
        Samples in a chunk, if the user gave it.
    """

    _loss: BatchLoss

    def __init__(self, loss: BatchLoss, batch_size: int | None) -> None:
        super().__init__(loss, batch_size)
        self._of_net = {id(p) for p in loss.net.parameters()}

    def evaluate(self, chunk: Any) -> Result:
        """Return what the function computes, without gradients unless it needs them."""
        loss = self._loss
        try:
            with torch.no_grad():
                return loss.result(chunk)
        except RuntimeError as error:
            if loss.needs_grad:
                raise
            loss.needs_grad = True
            try:
                with loss.in_place(loss.leaves(loss.layout.flatten())):
                    return loss.result(chunk)
            except Exception:
                loss.needs_grad = False
                if "does not require grad" in str(error):
                    error.add_note(
                        "To differentiate by a tensor of the batch, call requires_grad_() on it in loss_fn first."
                    )
                raise error from None

    def find(self) -> None:
        """Put what is found into the loss."""
        loss, data = self._loss, self._loss.data
        if data.n_samples == 1:
            self._check_batch_norm()
        found = self._on_a_few()
        loss.kind = found.kind
        if loss.weight is not None and loss.kind != "mean":
            raise InvalidInputError(
                f"weight= is for a loss_fn that returns a mean; this one returns "
                f"{'one loss per sample' if loss.kind == 'samples' else 'a sum with its own weight'}. Leave it out."
            )
        if data.of_batches and found.kind == "samples" and found.weight == 1 and _is_of_several(data.head(1)):
            raise CriterionError(
                "loss_fn returned one number in a tensor of shape (1,) for a batch of several samples. Return a scalar "
                "if it is their mean, and pass weight=; or one loss per sample."
            )
        with torch.no_grad(), loss.in_place(loss.leaves(loss.layout.flatten())):
            loss.take_metrics(self._moved(data.spread(self._few(4))))
        self._refuse_parameters_outside()
        loss.recomputes = self._finds_recomputation()
        loss.graph_bytes_per_sample = self._measure_graph()

        data.cut(1 if data.of_batches else self._chunk_size(), loss.memory_budget)
        self._check_batch_norm()
        rows = data.spread(self._few(min(SAMPLES, max(16, data.chunk_size))))
        first, second = data.rows(rows), data.rows(rows)
        one, two = ([self._watched(each).value.detach()] for each in (first, second))
        self._refuse_differing(first, second, one, two)
        if data.of_batches:  # each is of its own kind
            for batch in data.host_chunks():
                self._watched(batch)
        with torch.no_grad():
            loss.denominators = self._weigh(rows)
        if not sum(loss.denominators) > 0:
            raise CriterionError(
                "The weights of all batches are 0: there is nothing that the loss is a mean of."
            )

    def _few(self, n: int) -> int:
        """Return on how many samples to try something: on one batch, where items are batches."""
        return 1 if self._loss.data.of_batches else super()._few(n)

    def _check_batch_norm(self) -> None:
        if not self._loss.data.of_batches:
            super()._check_batch_norm()

    def _refuse_parameters_outside(self) -> None:
        """Refuse a function that depends on parameters that aren't the net's, or were taken out of it before."""
        leaves = self._trainable_leaves()
        with torch.enable_grad(), self._loss.in_place(leaves):
            value = self._value(self._few(2))
        reached = [node.variable for node in graph_nodes([value]) if hasattr(node, "variable")]
        outside = [t for t in reached if isinstance(t, nn.Parameter)]  # the leaves are none
        if any(id(t) in self._of_net for t in outside):
            raise CriterionError(
                "loss_fn holds parameters of the net that were taken out of it before. They would be constants: read "
                "them from the net that it is given."
            )
        if outside:
            raise CriterionError(
                f"loss_fn depends on parameters that aren't the net's, of shapes "
                f"{', '.join(str(tuple(t.shape)) for t in outside[:3])}: they aren't in θ, and would never be trained. "
                "Make them parameters of the net (a module that holds both), or freeze them with requires_grad_(False)."
            )

    # ------------------------------------------------------------------ weights

    def _weigh(self, rows: Tensor) -> list[float]:
        """Return how much each chunk has of what the loss averages over."""
        loss, data = self._loss, self._loss.data
        items = data.items_per_chunk()
        if data.n_chunks == 1 and loss.kind == "mean":
            return [1.0]
        if loss.kind == "mean" and loss.weight is None and data.of_batches:
            raise CriterionError(
                f"loss_fn returns a mean over each of {data.n_chunks} batches, and what they count in the whole can't "
                "be told. Pass weight=, a function of a batch that returns how much it counts (its samples, or "
                "tokens); or return a pair (sum, weight), or one loss per sample."
            )
        candidates = self._candidates()
        if data.n_chunks > 1 and not data.of_batches and not normalizes_batches(loss.net):
            names = self._additive(rows, unequal(len(rows), single=min(items) == 1), candidates)
            names = self._additive(rows, _halves(len(rows)), {name: candidates[name] for name in names})
            candidates = {name: candidates[name] for name in names}
        if loss.kind == "samples" and self._one_each(rows):
            return [float(n) for n in items]
        weights = [
            {name: weigh(move(chunk, loss.device, loss.dtype), n) for name, weigh in candidates.items()}
            for chunk, n in zip(data.host_chunks(), items, strict=True)
        ]
        found = list(candidates)
        # Those that agree on the items tried may differ on chunks that are made otherwise.
        while (pair := unlike(weights, found)) is not None:
            spans = [
                torch.arange(i * data.chunk_size, i * data.chunk_size + items[i], device="cpu") for i in pair
            ]
            still = self._additive(torch.cat(spans), [items[i] for i in pair], candidates)
            still = [name for name in found if name in still]
            if len(still) in {0, len(found)}:
                raise CriterionError(
                    f"What the loss averages over in a batch can't be told: its {' or its '.join(found)}. Pass "
                    "weight=, a function of a batch that returns how much it counts."
                )
            found = still
        if loss.weight is None and found[0] != "items" and loss.kind == "mean":
            loss.weight = _Weight(candidates[found[0]])
        return [weight[found[0]] for weight in weights]

    def _candidates(self) -> dict[str, Weighing]:
        """Return what batches may be weighed by, the most likely first."""
        from gradflow.loss.batch_loss import own_loss

        loss = self._loss
        candidates: dict[str, Weighing] = {"items": loss.denominator}
        labels = _labels(loss.data.head(1)) if loss.kind == "mean" and loss.weight is None else None
        if loss.loss_fn is own_loss and labels is not None:
            shifted: dict[str, Weighing] = {"labels after the first": _n_shifted} if labels.dim() > 1 else {}
            candidates = shifted | {"labels": _n_labels} | candidates
        return candidates

    def _one_each(self, rows: Tensor) -> bool:
        """Whether there is one loss for each item."""
        loss = self._loss
        if loss.data.of_batches:
            return False
        return loss.result(self._moved(rows)).weight == len(rows)

    def _additive(self, rows: Tensor, sizes: Sequence[int], candidates: Mapping[str, Weighing]) -> list[str]:
        """Return by which weights the values on parts of some items add up to that on all of them at once.

        Tried at the net's weights, and at others: where all samples have equal losses (a head that starts at zero), a
        wrong weight isn't seen.
        """
        loss = self._loss
        passing = list(candidates)
        for leaves in (loss.leaves(loss.layout.flatten()), self._other_leaves()):
            with loss.in_place(leaves):
                passing = self._adding_up(rows, sizes, {name: candidates[name] for name in passing})
        return passing

    def _adding_up(self, rows: Tensor, sizes: Sequence[int], candidates: Mapping[str, Weighing]) -> list[str]:
        loss = self._loss
        parts = [self._moved(part) for part in rows.split(list(sizes))]
        try:
            with Casts(loss.net, loss.dtype) as casts:
                result = loss.result(self._moved(rows))
            of_parts = [loss.result(part) for part in parts]
        except Exception as error:
            raise CriterionError(
                f"loss_fn can't be computed in chunks: on {len(rows)} samples, or {min(sizes)}, it fails with "
                f"{type(error).__name__}: {error}. {self._remedy()}"
            ) from error
        value = float(result.mean(result.weight))
        if not math.isfinite(value):
            return list(candidates)
        eps, coarse = torch.finfo(loss.dtype).eps, max(casts.eps, torch.finfo(result.value.dtype).eps)
        tolerance = 1e3 * eps if coarse == eps else min(_COARSE * coarse, _COARSEST)
        passing, got = [], math.nan
        for name, weigh in candidates.items():
            weights = [weigh(part, n) for part, n in zip(parts, sizes, strict=True)]
            if sum(weights) == 0:
                continue
            found = float(weighted_mean(list(zip(of_parts, weights, strict=True))))
            scale = max(abs(value), *(abs(float(each.mean(each.weight or 1.0))) for each in of_parts))
            if abs(found - value) <= tolerance * scale:
                passing.append(name)
            elif math.isnan(got):
                got = found
        if not passing:
            raise CriterionError(
                f"loss_fn can't be computed in chunks: on {len(rows)} samples at once it gives {value:.9g}, over "
                f"chunks of {', '.join(map(str, sizes))} it gives {got:.9g}. It couples samples, or a batch isn't "
                f"weighed by what the loss averages over. {self._remedy()} Or return one loss per sample, or a pair "
                "(sum, weight)"
                + ("; or pass weight=, a function of a batch." if loss.kind == "mean" else ".")
            )
        return passing

    def _other_leaves(self) -> list[Tensor]:
        """Return weights of the size of the net's, and away from them; from a generator of their own."""
        generator = torch.Generator("cpu").manual_seed(0)
        leaves = self._loss.leaves(self._loss.layout.flatten())
        sizes = [max(float(leaf.square().mean().sqrt()), _ELSE) for leaf in leaves]
        draws = [torch.randn(leaf.shape, generator=generator, device="cpu").to(leaf) for leaf in leaves]
        return [leaf + size * draw for leaf, size, draw in zip(leaves, sizes, draws, strict=True)]

    def _moved(self, rows: Tensor) -> Any:
        return move(self._loss.data.rows(rows), self._loss.device, self._loss.dtype)

    def _remedy(self) -> str:
        loss, N, MiB = self._loss, self._loss.data.n_samples, 2.0**20
        remedy = f"Pass batch_size={N} to evaluate all samples at once"
        if self._batch_size is None:
            remedy += (
                f", which takes about {loss.graph_bytes_per_sample * N / MiB:.3g} MiB (memory_budget is "
                f"{loss.memory_budget / MiB:.3g} MiB)"
            )
        return f"{remedy}."


class _Weight:
    """A weight that was found, as a function of a batch."""

    def __init__(self, weigh: Weighing) -> None:
        self._weigh = weigh

    def __call__(self, batch: Any) -> float:
        return self._weigh(batch, 0)


def _is_of_several(batch: Any) -> bool:
    return any(t.dim() > 0 and len(t) > 1 for t in tensors_of(batch))


def _halves(n: int) -> list[int]:
    return [n - n // 2, n // 2]


def _labels(batch: Any) -> Tensor | None:
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return labels if isinstance(labels, Tensor) and not labels.is_floating_point() else None


def _n_labels(batch: Any, n_items: int) -> float:
    return float((batch["labels"] != _IGNORED).sum())


def _n_shifted(batch: Any, n_items: int) -> float:
    return float((batch["labels"][..., 1:] != _IGNORED).sum())
