"""What is found out about a criterion of a network's outputs, and refused if it can't be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradflow.errors import CriterionError
from gradflow.loss.accuracy import count_correct
from gradflow.loss.additivity import Evaluated, weigh_chunks
from gradflow.loss.criteria import ChunkedCriterion, check_broadcast, n_classes, resolve_reduction
from gradflow.loss.data import Chunk, move
from gradflow.loss.probe import SAMPLES, Probe

if TYPE_CHECKING:
    from gradflow.loss.network import NetworkLoss


class CriterionProbe(Probe):
    """Finds out reduction, outputs, memory and chunks of the loss of a criterion.

    Parameters
    ----------
    loss : NetworkLoss
        With net, criterion and data.
    batch_size : int or None
        Samples in a chunk, if the user gave it.
    """

    _loss: NetworkLoss

    def __init__(self, loss: NetworkLoss, batch_size: int | None) -> None:
        super().__init__(loss, batch_size)
        self._trainable = [p for p in loss.net.parameters() if p.requires_grad]

    def evaluate(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return (outputs, targets)."""
        inputs, target = chunk
        with torch.no_grad():
            output = self._loss.forward(inputs)
            self._loss.evaluator(output)(output.clone(), target.clone())
        return output, target

    def find(self) -> None:
        """Put what is found into the loss."""
        loss, data = self._loss, self._loss.data
        if data.n_samples == 1:
            self._check_batch_norm()
        output, target = self._on_a_few()
        loss.n_outputs = output[0].numel()
        classes = n_classes(loss.criterion, output)
        loss.stiff_dim = loss.n_outputs if classes is None else max(1, classes - 1)
        value = loss.evaluator(output)(output, target)
        reduction = resolve_reduction(loss.criterion, value, len(output))
        loss.chunked = ChunkedCriterion(loss.criterion, reduction)
        reads_weights = self._finds_weights_in_criterion(output, target, self._trainable)
        loss.recomputes = self._finds_recomputation()
        loss.graph_bytes_per_sample = self._measure_graph()

        data.cut(self._chunk_size(), loss.memory_budget)
        self._check_batch_norm()
        rows = data.spread(self._few(min(SAMPLES, max(16, data.chunk_size))))
        first, second = data.rows(rows), data.rows(rows)
        output, target = self._watched(first)
        again, target_again = self._watched(second)
        counts = count_correct(loss.criterion, output, target)
        loss.classifies = counts is not None and bool(counts[1] > 0)
        one, two = ([o, loss.evaluator(o)(o, t).sum()] for o, t in ((output, target), (again, target_again)))
        self._refuse_differing(first, second, one, two)
        check_broadcast(loss.evaluator(output), output, target)
        loss.denominators = self._weigh_chunks(rows, output, reads_weights=reads_weights)

    def _finds_weights_in_criterion(
        self, output: Tensor, target: Tensor, trainable: Sequence[Tensor]
    ) -> bool:
        """Find out whether the criterion reads θ; refuse one that depends on other tensors with a gradient."""
        evaluate = self._loss.evaluator(output)
        with torch.enable_grad():
            value = evaluate(output.detach().clone(), target.clone()).sum()
            if value.requires_grad:
                captured = torch.autograd.grad(value, trainable, allow_unused=True)
                raise CriterionError(
                    "The criterion holds parameters of the net that were taken out of it before. They would be "
                    "constants: call net.parameters() inside the criterion instead."
                    if any(g is not None for g in captured)
                    else "The criterion depends on tensors that require a gradient and aren't the net's: "
                    "they aren't in θ, and are never trained. Make them parameters of the net, or freeze them with "
                    "requires_grad_(False)."
                )
            with self._loss.in_place(self._trainable_leaves()):
                return evaluate(output.detach().clone(), target.clone()).requires_grad

    def _weigh_chunks(self, rows: Tensor, output: Tensor, *, reads_weights: bool) -> list[float]:
        """Return how much each chunk has of what the criterion averages over."""
        loss, data = self._loss, self._loss.data
        if data.n_chunks == 1:  # untried, so that mini-batches are one chunk as well
            return [float(data.n_samples)]
        if reads_weights and loss.chunked.reduction == "sum":
            raise CriterionError(
                'A criterion with reduction="sum" that reads the weights of the net counts them once per chunk. Use '
                'reduction="mean", where they count once.'
            )
        N, MiB = data.n_samples, 2.0**20
        remedy = f"Pass batch_size={N}"
        if self._batch_size is None:
            remedy += (
                f", which takes about {loss.graph_bytes_per_sample * N / MiB:.3g} MiB (memory_budget is "
                f"{loss.memory_budget / MiB:.3g} MiB)"
            )

        def outputs_on(rows: Tensor) -> Evaluated:
            inputs, target = move(data.rows(rows), loss.device, loss.dtype)
            return Evaluated(loss.forward(inputs), target, len(rows))

        with torch.no_grad():
            return weigh_chunks(data, loss.chunked, loss.evaluator(output), outputs_on, rows, f"{remedy}.")
