"""What is found out about the loss of a network over data when it is made, and refused if it can't be trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradflow.checks import check_count
from gradflow.errors import GradflowError, InvalidInputError, NonDeterministicLossError
from gradflow.loss.checkpointing import refuse_reentrant, refusing_reentrant
from gradflow.loss.data import move
from gradflow.loss.data_loss import DataLoss
from gradflow.loss.memory import graph_bytes
from gradflow.loss.modes import drops, normalizes_batches
from gradflow.loss.trees import tensors_of

#: Samples on which values at once and in parts are compared.
SAMPLES = 256


class Probe:
    """Evaluates a loss that is being made on a few samples, at the net's present weights.

    A kind of loss says what is evaluated (:meth:`evaluate`), and what is to be found out (:meth:`find`).

    Parameters
    ----------
    loss : DataLoss
        With net and data.
    batch_size : int or None
        Samples in a chunk, if the user gave it.

    Raises
    ------
    NonDeterministicLossError
        If two evaluations differ.
    CriterionError
        If values on chunks don't add up to that on the whole, or the loss depends on what isn't in θ.
    InvalidInputError
        If the net writes to its parameters, or can't be differentiated for its checkpointing.
    """

    def __init__(self, loss: DataLoss, batch_size: int | None) -> None:
        self._loss = loss
        self._batch_size = batch_size
        self._takes_only_all = False

    def run(self) -> None:
        """Put what is found into the loss."""
        loss = self._loss
        cuda = [loss.device] if loss.device.type == "cuda" else []
        theta = loss.layout.flatten()
        with torch.random.fork_rng(devices=cuda), loss.settings(theta), refusing_reentrant():
            with loss.in_place(loss.leaves(theta)):
                self.find()

    def evaluate(self, chunk: Any) -> Any:
        """Evaluate on a chunk, with the leaves that are in place, and return what came out."""
        raise NotImplementedError

    def find(self) -> None:
        """Find out all of it."""
        raise NotImplementedError

    # ------------------------------------------------------------------ evaluations

    def _few(self, n: int) -> int:
        """Return on how many samples to try something for which n would do."""
        return self._loss.data.n_samples if self._takes_only_all else min(n, self._loss.data.n_samples)

    def _on_a_few(self) -> Any:
        """Evaluate on four samples; on all, if the loss takes nothing else (pairs, say)."""
        data = self._loss.data
        try:
            self._watched(data.head(self._few(2)))
            return self._watched(data.head(self._few(4)))
        except GradflowError:
            raise
        except Exception as error:
            if data.n_samples <= 2:
                raise
            if data.n_samples > max(SAMPLES, self._batch_size or 0):
                error.add_note(
                    f"This was on at most 4 samples. If it needs all of them, pass batch_size={data.n_samples}."
                )
                raise
            self._takes_only_all = True
            return self._watched(data.head(data.n_samples))

    def _watched(self, chunk: Any) -> Any:
        """Evaluate on a chunk at the net's present weights; see what the net writes to, and what it draws."""
        loss = self._loss
        chunk = move(chunk, loss.device, loss.dtype)
        theta = loss.layout.flatten()
        inputs = tensors_of(chunk)
        versions = [t._version for t in inputs], theta._version
        random_state = self._random_state()
        with loss.in_place(loss.leaves(theta)):
            found = self.evaluate(chunk)
        if not torch.equal(random_state, self._random_state()):
            raise NonDeterministicLossError(self._random_message("The loss draws random numbers"))
        if versions[1] != theta._version:
            raise InvalidInputError(
                "The net writes to its own parameters in forward (an nn.Embedding with max_norm, say), so that the "
                "loss isn't a function of θ. Take that out."
            )
        loss.writes_inputs |= versions[0] != [t._version for t in inputs]
        return found

    def _value(self, n: int) -> Tensor:
        """Evaluate the loss on n samples with the leaves that are in place."""
        loss = self._loss
        return loss.value_on(move(loss.data.head(n), loss.device, loss.dtype))

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

    # ------------------------------------------------------------------ one function of θ

    def _refuse_differing(self, first: Any, second: Any, one: list[Tensor], two: list[Tensor]) -> None:
        """Refuse a loss that gives other numbers on the same items, read twice: the last of them is its value."""
        if self._loss.device.type == "cpu":
            same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, two, strict=True))
        else:
            same = torch.allclose(one[-1], two[-1], rtol=1e-5, atol=0.0, equal_nan=True)
        if same:
            return
        changed = any(
            not torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(second), strict=True)
        )
        more = (
            ["the data set returns other values when it is read again (random augmentation?)"]
            if changed
            else []
        )
        raise NonDeterministicLossError(
            self._random_message(
                f"Two evaluations of the loss at the same θ differ, {float(one[-1]):.9g} and {float(two[-1]):.9g}",
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
        causes = [f"{name} is {m} in train mode" for name, m in modules if drops(m)] + list(more)
        return (
            f"{what}, so that its gradient and Hessian have no meaning. "
            + (f"Cause: {'; '.join(causes)}. " if causes else "")
            + "Call net.eval(), or take the randomness out."
        )
