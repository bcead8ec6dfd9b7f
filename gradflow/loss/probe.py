"""What is found out about the loss of a network when it is made, and refused if it can't be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradflow.checks import check_count
from gradflow.errors import CriterionError, GradflowError, InvalidInputError, NonDeterministicLossError
from gradflow.loss.accuracy import count_correct
from gradflow.loss.additivity import Evaluated, weigh_chunks
from gradflow.loss.checkpointing import refuse_reentrant, refusing_reentrant
from gradflow.loss.criteria import ChunkedCriterion, check_broadcast, resolve_reduction
from gradflow.loss.data import Chunk, move
from gradflow.loss.memory import graph_bytes

if TYPE_CHECKING:
    from gradflow.loss.network import NetworkLoss

_SAMPLES = 256


def probe(loss: NetworkLoss, batch_size: int | None) -> None:
    """Find out reduction, outputs, memory and chunks of a loss that is being made, and put them into it.

    Parameters
    ----------
    loss : NetworkLoss
        With net, criterion and data.
    batch_size : int or None
        Samples in a chunk, if the user gave it.

    Raises
    ------
    NonDeterministicLossError
        If two evaluations differ.
    CriterionError
        If values on chunks don't add up to that on the whole, or the criterion depends on what isn't in θ.
    InvalidInputError
        If the net writes to its parameters, or can't be differentiated for its checkpointing.
    """
    cuda = [loss.device] if loss.device.type == "cuda" else []
    theta = loss.layout.flatten()
    trainable = [p for p in loss.net.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=cuda), loss.settings(theta), refusing_reentrant():
        with loss.in_place(loss.leaves(theta)):
            _Probe(loss, batch_size).run(trainable)


class _Probe:
    """Evaluates a loss on a few samples at the net's present weights."""

    def __init__(self, loss: NetworkLoss, batch_size: int | None) -> None:
        self._loss = loss
        self._batch_size = batch_size
        self._takes_only_all = False

    def run(self, trainable: Sequence[Tensor]) -> None:
        """Put what is found into the loss."""
        loss, data = self._loss, self._loss.data
        if data.n_samples == 1:
            self._check_batch_norm()
        output, target = self._forward_on_a_few()
        loss.n_outputs = output[0].numel()
        value = loss.evaluator(output)(output, target)
        reduction = resolve_reduction(loss.criterion, value, len(output))
        loss.chunked = ChunkedCriterion(loss.criterion, reduction)
        reads_weights = self._finds_weights_in_criterion(output, target, trainable)
        loss.recomputes = self._finds_recomputation()
        loss.graph_bytes_per_sample = self._measure_graph()

        data.cut(self._chunk_size(), loss.memory_budget)
        self._check_batch_norm()
        rows = data.spread(self._few(min(_SAMPLES, max(16, data.chunk_size))))
        first, second = data.rows(rows), data.rows(rows)
        output, target = self._forward(first)
        again, target_again = self._forward(second)
        counts = count_correct(loss.criterion, output, target)
        loss.classifies = counts is not None and bool(counts[1] > 0)
        self._check_deterministic(first, second, (output, target), (again, target_again))
        check_broadcast(loss.evaluator(output), output, target)
        loss.denominators = self._weigh_chunks(rows, output, reads_weights=reads_weights)

    # ------------------------------------------------------------------ evaluations

    def _few(self, n: int) -> int:
        """Return on how many samples to try something for which n would do."""
        return self._loss.data.n_samples if self._takes_only_all else min(n, self._loss.data.n_samples)

    def _forward_on_a_few(self) -> tuple[Tensor, Tensor]:
        """Return (outputs, targets) of four samples; of all, if the criterion takes nothing else (pairs, say)."""
        data = self._loss.data
        try:
            self._forward(data.head(self._few(2)))
            return self._forward(data.head(self._few(4)))
        except GradflowError:
            raise
        except Exception as error:
            if data.n_samples <= 2:
                raise
            if data.n_samples > max(_SAMPLES, self._batch_size or 0):
                error.add_note(
                    f"This was on at most 4 samples. If it needs all of them, pass batch_size={data.n_samples}."
                )
                raise
            self._takes_only_all = True
            return self._forward(data.head(data.n_samples))

    def _forward(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return (outputs, targets) of a chunk at the net's present weights; see what the net writes to."""
        loss = self._loss
        inputs, target = move(chunk, loss.device, loss.dtype)
        theta = loss.layout.flatten()
        versions = [t._version for t in inputs], theta._version
        random_state = self._random_state()
        with torch.no_grad(), loss.in_place(loss.leaves(theta)):
            output = loss.forward(inputs)
            loss.evaluator(output)(output.clone(), target.clone())
        if not torch.equal(random_state, self._random_state()):
            raise NonDeterministicLossError(self._random_message("The loss draws random numbers"))
        if versions[1] != theta._version:
            raise InvalidInputError(
                "The net writes to its own parameters in forward (an nn.Embedding with max_norm, say), so that the "
                "loss isn't a function of θ. Take that out."
            )
        loss.writes_inputs |= versions[0] != [t._version for t in inputs]
        return output, target

    def _value(self, n: int) -> Tensor:
        """Evaluate the criterion, and sum, on n samples with the leaves that are in place."""
        loss = self._loss
        inputs, target = move(loss.data.head(n), loss.device, loss.dtype)
        output = loss.forward(inputs)
        return loss.evaluator(output)(output, target).sum()

    def _trainable_leaves(self) -> list[Tensor]:
        loss = self._loss
        return [leaf.detach().requires_grad_(True) for leaf in loss.leaves(loss.layout.flatten())]

    # ------------------------------------------------------------------ memory and recomputation

    def _chunk_size(self) -> int:
        N = self._loss.data.n_samples
        if self._batch_size is not None:
            check_count("batch_size", self._batch_size, least=1)
            return min(self._batch_size, N)
        fitting = self._loss.memory_budget // max(1, self._loss.graph_bytes_per_sample)
        # A power of two, so that the same choice is made again when the free memory is about the same.
        return N if fitting >= N else 1 << max(0, fitting.bit_length() - 1)

    def _measure_graph(self) -> int:
        """Measure what the graph of a gradient takes, per sample."""
        small, large = self._few(2), self._few(4)
        if (small, large) == (2, 4):
            return (self._graph_bytes(large) - self._graph_bytes(small)) // 2
        return self._graph_bytes(large) // large

    def _graph_bytes(self, n: int) -> int:
        leaves = self._trainable_leaves()
        with self._loss.in_place(leaves):
            return graph_bytes(lambda: self._value(n), leaves, recomputes=self._loss.recomputes)

    def _finds_recomputation(self) -> bool:
        """Find out whether differentiation reads the net again: with NaN for its weights, the gradient changes."""
        leaves = self._trainable_leaves()
        with torch.enable_grad(), self._loss.in_place(leaves):
            value = self._value(self._few(2))
            if not value.requires_grad:
                return False
            refuse_reentrant(value)
            try:
                here = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            except RuntimeError:  # no derivative: whoever asks for it is told
                return False
        with self._loss.in_place([torch.full_like(leaf, torch.nan) for leaf in leaves]):
            try:
                elsewhere = torch.autograd.grad(value, leaves, allow_unused=True)
            except RuntimeError:
                return True
        return any(
            a is not None and b is not None and bool((a.isnan() != b.isnan()).any())
            for a, b in zip(here, elsewhere, strict=True)
        )

    # ------------------------------------------------------------------ the criterion

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

    # ------------------------------------------------------------------ one function of θ

    def _check_deterministic(
        self, first: Chunk, second: Chunk, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]
    ) -> None:
        values = [self._loss.evaluator(o)(o, t).sum() for o, t in (one, two)]
        if self._loss.device.type == "cpu":
            pairs = ((one[0], two[0]), (values[0], values[1]))
            same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
        else:
            same = torch.allclose(values[0], values[1], rtol=1e-5, atol=0.0, equal_nan=True)
        if same:
            return
        read_twice = zip((*first[0], first[1]), (*second[0], second[1]), strict=True)
        changed = any(not torch.equal(a, b) for a, b in read_twice)
        more = (
            ["the data set returns other values when it is read again (random augmentation?)"]
            if changed
            else []
        )
        raise NonDeterministicLossError(
            self._random_message(
                f"Two evaluations of the loss at the same θ differ, {float(values[0]):.9g} and {float(values[1]):.9g}",
                *more,
            )
        )

    def _check_batch_norm(self) -> None:
        N, size = self._loss.data.n_samples, self._loss.data.chunk_size
        if normalizes_batches(self._loss.net) and (N % size == 1 or size == 1):
            raise InvalidInputError(
                f"Batch-norm in train mode needs at least two samples in a chunk; of {N} samples in chunks of {size} "
                "the last has one. Choose another batch_size, or call net.eval()."
            )

    def _random_state(self) -> Tensor:
        device = self._loss.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _random_message(self, what: str, *more: str) -> str:
        modules = self._loss.net.named_modules()
        causes = [f"{name} is {m} in train mode" for name, m in modules if _drops(m)] + list(more)
        return (
            f"{what}, so that its gradient and Hessian have no meaning. "
            + (f"Cause: {'; '.join(causes)}. " if causes else "")
            + "Call net.eval(), or take the randomness out."
        )


def normalizes_batches(net: nn.Module) -> bool:
    """Whether a net has batch-norm in train mode, by whose statistics samples know of each other."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in net.modules())


def _drops(module: nn.Module) -> bool:
    if not module.training:
        return False
    p = getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
    inner = getattr(module, "dropout", 0.0)
    return bool(p) or (isinstance(inner, float) and inner > 0)
