"""The loss of a network by a criterion of its outputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss.accuracy import Tally
from gradflow.loss.batches import of_loader
from gradflow.loss.capture import Captures, Compile
from gradflow.loss.check import LEVELS, CheckLevel
from gradflow.loss.criteria import ChunkedCriterion, check_criterion
from gradflow.loss.criterion_probe import CriterionProbe
from gradflow.loss.data import Chunk, ChunkedData
from gradflow.loss.data_loss import DataLoss, Mode
from gradflow.loss.difference import Products
from gradflow.loss.function import Evaluation
from gradflow.loss.linearization import Count, Linearization


class NetworkLoss(DataLoss):
    """L(θ) = mean over samples of criterion(net(inputs; θ), target); made by :class:`LossFunction`.

    Parameters are those of :class:`LossFunction`. None of them is changed.

    Attributes
    ----------
    criterion
        As given.
    chunked : ChunkedCriterion
        How values on chunks add up.
    """

    n_outputs: int
    chunked: ChunkedCriterion

    def __init__(
        self,
        dataset: Dataset[Any],
        criterion: Callable[..., Tensor],
        net: nn.Module,
        *,
        batch_size: int | None = None,
        memory_budget: int | None = None,
        allow_tf32: bool = False,
        mode: Mode | None = None,
        hvp: Products = "exact",
        check: CheckLevel | None = "full",
        compile: Compile = "auto",
        **dataloader_kwargs: Any,
    ) -> None:
        for name in ("loss_fn", "weight", "metrics"):  # None, or the kind would be another
            dataloader_kwargs.pop(name, None)
        if compile not in {"auto", True, False}:
            raise InvalidInputError(f'Expected compile as "auto", True or False, got {compile!r}.')
        if check is not None and check not in LEVELS:
            raise InvalidInputError(f'Expected check as "full", "fast" or None, got {check!r}.')
        check_criterion(criterion)
        if isinstance(dataset, DataLoader):
            dataset, batch_size, dataloader_kwargs = of_loader(dataset, batch_size, dataloader_kwargs)
        self.criterion = criterion
        super().__init__(
            ChunkedData(dataset, dataloader_kwargs),
            net,
            mode=mode,
            hvp=hvp,
            memory_budget=memory_budget,
            allow_tf32=allow_tf32,
        )
        self._loader_options = dataloader_kwargs
        self._captures = Captures(compile)
        CriterionProbe(self, batch_size).run()
        self._examine(check)

    # ------------------------------------------------------------------ parts of the data

    def subset(self, rows: Sequence[int]) -> NetworkLoss:
        """Return the loss over some samples, by their numbers, in chunks of the same size; it shares the network."""
        if self._mode is None:
            self.check_modes()
        part = NetworkLoss(
            self.data.subset(rows),
            self.criterion,
            self.net,
            batch_size=self.data.chunk_size,
            memory_budget=self.memory_budget,
            allow_tf32=self._allow_tf32,
            mode=self._mode,
            hvp=self._hvp,
            check=None,
            compile=self._captures.compile,
            **self._loader_options,
        )
        part.second = self.second
        part._labels = dict(self._labels)
        return part

    def of_rows(self, rows: Tensor) -> NetworkLoss:
        """Return the loss over some items of the data, by their numbers, shape (b,), int64; nothing is checked."""
        from gradflow.loss.minibatch import MiniBatchLoss

        return MiniBatchLoss(self, rows)

    def describe(self) -> dict[str, Any]:
        """Name net, criterion, data, and how they are cut into chunks."""
        return super().describe() | {
            "criterion": getattr(self.criterion, "__name__", type(self.criterion).__name__),
            "reduction": self.chunked.reduction,
            "n_outputs": self.n_outputs,
        }

    # ------------------------------------------------------------------ chunks

    def share(self, chunk: Chunk, d: float, total: float, tally: Tally | None) -> Tensor:
        """Return the share of the loss that a chunk has, a scalar, with the leaves that are in place."""
        inputs, target = chunk
        output = self.forward(inputs)
        if tally is not None:
            tally.add(self.criterion, output, target)
        return self.chunked.share(self.evaluator(output), output, target, d, total)

    def value_on(self, chunk: Chunk) -> Tensor:
        """Return the criterion, summed, on a chunk with the leaves that are in place."""
        inputs, target = chunk
        output = self.forward(inputs)
        return self.evaluator(output)(output, target).sum()

    def per_sample(self, theta: Tensor, chunk: Chunk) -> Tensor:
        """Return the net's outputs at θ, shape (n, …), on a chunk of θ's device and dtype, without derivatives."""
        with self.settings(theta), torch.no_grad(), self.in_place(self.leaves(theta.detach())):
            return self.forward(chunk[0])

    def denominator(self, chunk: Chunk, n_items: int) -> float:
        """Return how much a chunk has of what the criterion averages over."""
        return self.chunked.denominator(chunk[1], n_items)

    # ------------------------------------------------------------------ values and derivatives

    @property
    def is_plain(self) -> bool:
        """Whether the loss does what this class says, and no class of somebody else's."""
        return type(self) is NetworkLoss and self._mode is None

    def _evaluated(self, theta: Tensor, *, accuracy: bool) -> Evaluation:
        counts = accuracy and self.classifies
        captured = self._captures.evaluated(self, theta, accuracy=counts)
        return super()._evaluated(theta, accuracy=accuracy) if captured is None else captured

    def _linearized(
        self, theta: Tensor, *, count: Count, count_third: Count, accuracy: bool, keep: bool
    ) -> Linearization:
        counts = accuracy and self.classifies
        captured = (
            self._captures.linearized(self, theta, count, count_third, accuracy=counts)
            if keep and self.has_exact_products
            else None
        )
        if captured is not None:
            return captured
        return super()._linearized(theta, count=count, count_third=count_third, accuracy=accuracy, keep=keep)

    # ------------------------------------------------------------------ the net at θ

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the net's output with the leaves that are in place."""
        self.renew_buffers()
        if self.writes_inputs:
            inputs = tuple(t.clone() for t in inputs)
        output = self.net(*inputs)
        if not isinstance(output, Tensor):
            raise InvalidTypeError(
                f"Expected the net to return one tensor, got {type(output).__name__}. Wrap it in a module that "
                "returns the output that the criterion takes."
            )
        return output

    def evaluator(self, output: Tensor) -> Callable[..., Tensor]:
        """Return the criterion with what it has of its own (class weights) where the output is."""
        criterion = self.criterion
        if not isinstance(criterion, nn.Module):
            return criterion
        own = [*criterion.named_buffers(), *criterion.named_parameters()]
        if not own:
            return criterion
        of_net = {id(t) for t in (*self.net.parameters(), *self.net.buffers())}
        state = {
            name: tensor.to(output.device, output.dtype if tensor.is_floating_point() else None).clone()
            for name, tensor in own
            if id(tensor) not in of_net
        }
        return lambda output, target: functional_call(criterion, state, (output, target))
