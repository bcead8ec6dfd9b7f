"""The loss of a network over a data set, as a sum over chunks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from gradflow.checks import check_count
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss.accuracy import Tally
from gradflow.loss.capture import Captures, Compile
from gradflow.loss.check import LEVELS, CheckLevel, enforce, examine
from gradflow.loss.criteria import ChunkedCriterion, check_criterion, is_cross_entropy
from gradflow.loss.data import Chunk, ChunkedData, add_to_hash, default_memory_budget
from gradflow.loss.function import Evaluation, LossFunction
from gradflow.loss.kinks import kinks_of
from gradflow.loss.linearization import Count, Linearization
from gradflow.loss.normalized_weights import has_weight_norm, refuse_moving_norms
from gradflow.loss.numerics import exact_derivatives
from gradflow.loss.parameters import ParameterLayout, device_and_dtype
from gradflow.loss.placement import Placement, check_replaceable
from gradflow.loss.probe import probe
from gradflow.loss.second_derivatives import SecondDerivatives
from gradflow.loss.terms import Term, TermLoss

_HASHED_SAMPLES = 256
# Samples × parameters up to which calls cost more than arithmetic, so that batched products are faster.
_CALL_BOUND = 2**20
# Bytes of the graph of H·u over those of the gradient's graph.
_GRAPH_OF_PRODUCT = 2.5


class NetworkLoss(TermLoss):
    """L(θ) = mean over samples of criterion(net(inputs; θ), target); made by :class:`LossFunction`.

    Parameters are those of :class:`LossFunction`. None of them is changed.

    Attributes
    ----------
    net, criterion
        As given.
    data : ChunkedData
    layout : ParameterLayout
    chunked : ChunkedCriterion
        How values on chunks add up.
    denominators : list of float
        How much each chunk has of what the criterion averages over.
    graph_bytes_per_sample : int
    writes_inputs : bool
        The net changes its inputs, so that it is given copies.
    """

    n_parameters: int
    n_outputs: int
    n_samples: int
    device: torch.device
    dtype: torch.dtype
    memory_budget: int
    chunked: ChunkedCriterion
    denominators: list[float]
    graph_bytes_per_sample: int

    def __init__(
        self,
        dataset: Dataset[Any],
        criterion: Callable[..., Tensor],
        net: nn.Module,
        *,
        batch_size: int | None = None,
        memory_budget: int | None = None,
        allow_tf32: bool = False,
        check: CheckLevel | None = "full",
        compile: Compile = "auto",
        **dataloader_kwargs: Any,
    ) -> None:
        if compile not in {"auto", True, False}:
            raise InvalidInputError(f'Expected compile as "auto", True or False, got {compile!r}.')
        if check is not None and check not in LEVELS:
            raise InvalidInputError(f'Expected check as "full", "fast" or None, got {check!r}.')
        check_replaceable(net)
        check_criterion(criterion)
        self.net = net
        self.criterion = criterion
        self.layout = ParameterLayout(net)
        self.n_parameters = self.layout.n_parameters
        self.names = self.layout.names
        self.device, self.dtype = device_and_dtype(net)
        refuse_moving_norms(net)
        self.second = SecondDerivatives()
        self.second.third_is_checked = check is None
        self.data = ChunkedData(dataset, dataloader_kwargs)
        self.n_samples = self.data.n_samples
        self._loader_options = dataloader_kwargs
        self._allow_tf32 = allow_tf32
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in net.modules())
        self._weight_norm = has_weight_norm(net)
        self._modes = [(m, m.training) for m in net.modules()]
        self._placement: Placement | None = None
        self._captures = Captures(compile)
        self.recomputes = True  # until it is known
        self.writes_inputs = False
        self.memory_budget = default_memory_budget(self.device) if memory_budget is None else memory_budget
        check_count("memory_budget", self.memory_budget, least=1)
        probe(self, batch_size)
        self.stiff_dim = max(1, self.n_outputs - 1) if is_cross_entropy(criterion) else self.n_outputs
        self.kinks = kinks_of(net)
        self._labels: dict[str, Any] = {}
        if check is not None:
            self._rounds = enforce(examine(self, self.layout.flatten(), check), self)

    # ------------------------------------------------------------------ parts of the data

    @property
    def data_term(self) -> NetworkLoss:
        """The loss itself."""
        return self

    def check_rows(self, what: str) -> None:
        """There are rows to choose."""

    def subset(self, rows: Sequence[int]) -> NetworkLoss:
        """Return the loss over some samples, by their numbers, in chunks of the same size; it shares the network."""
        part = NetworkLoss(
            self.data.subset(rows),
            self.criterion,
            self.net,
            batch_size=self.data.chunk_size,
            memory_budget=self.memory_budget,
            allow_tf32=self._allow_tf32,
            check=None,
            compile=self._captures.compile,
            **self._loader_options,
        )
        part.second = self.second
        part._labels = dict(self._labels)
        return part

    def minibatch(self, rows: Tensor) -> NetworkLoss:
        """Return the loss over some samples, shape (b,), int64, by their numbers; nothing is checked again."""
        return self._of_rows(rows)

    def on_few_samples(self, n: int) -> NetworkLoss:
        """Return the loss on at most n samples, in one chunk, whose derivatives nobody has looked at yet."""
        few = self._of_rows(self.data.spread(min(n, self.data.chunk_size)))
        few.second = SecondDerivatives()
        return few

    def _of_rows(self, rows: Tensor) -> NetworkLoss:
        from gradflow.loss.minibatch import MiniBatchLoss

        return MiniBatchLoss(self, rows)

    def fingerprint(self) -> str:
        """Hash the data, or 256 of them spread evenly where they aren't tensors, and the net's frozen tensors."""
        digest = self._data_digest.copy()
        frozen = [p for name, p in self.net.named_parameters() if name not in set(self.names)]
        add_to_hash(digest, [*frozen, *self.net.buffers()])
        return f"{self.data.n_samples} samples, SHA-256 {digest.hexdigest()}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can't be copied or pickled, and is computed again: the hash of the data under way."""
        return {name: value for name, value in vars(self).items() if name != "_data_digest"}

    @cached_property
    def _data_digest(self) -> Any:
        digest = hashlib.sha256()
        add_to_hash(digest, self.data.tensors(_HASHED_SAMPLES))
        return digest

    def describe(self) -> dict[str, Any]:
        """Name net, criterion, data, and how they are cut into chunks."""
        return self._labels | {
            "net": type(self.net).__name__,
            "criterion": getattr(self.criterion, "__name__", type(self.criterion).__name__),
            "reduction": self.chunked.reduction,
            "n_samples": self.data.n_samples,
            "batch_size": self.data.chunk_size,
            "n_chunks": self.data.n_chunks,
            "n_outputs": self.n_outputs,
            "n_parameters": self.n_parameters,
            "allow_tf32": self._allow_tf32,
            "train_mode": any(m.training for m in self.net.modules()),
        }

    # ------------------------------------------------------------------ terms

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ into the net's parameters."""
        return self.layout.split(theta)

    def terms(self, theta: Tensor, tally: Tally | None = None) -> Iterator[Term]:
        """Return one term per chunk that counts."""
        if any(m.training != mode for m, mode in self._modes):
            raise InvalidInputError(
                "The net was switched between train and eval mode after the LossFunction was made, which makes it "
                "another function. Switch it back; a loss in the other mode takes a copy.deepcopy(net) of its own."
            )
        chunks, denominators = self.chunks(theta)
        total = sum(denominators)
        for (inputs, target), d in zip(chunks, denominators, strict=True):
            if d > 0 or total == 0:
                yield self._term(inputs, target, d, total, tally)

    def chunks(self, theta: Tensor) -> tuple[Iterable[Chunk], Sequence[float]]:
        """Return the chunks, and how much each has of what the criterion averages over."""
        return self.data.on(theta.device, theta.dtype), self.denominators

    def _term(
        self, inputs: tuple[Tensor, ...], target: Tensor, d: float, total: float, tally: Tally | None
    ) -> Term:
        def term(leaves: Sequence[Tensor]) -> Tensor:
            assert self._placement is not None
            assert self._placement.leaves is leaves
            output = self.forward(inputs)
            if tally is not None:
                tally.add(self.criterion, output, target)
            return self.chunked.share(self.evaluator(output), output, target, d, total)

        return term

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """Whether the graphs of all chunks fit in the memory budget together; those of one chunk are always kept."""
        return self.data.n_chunks == 1 or self.kept_bytes(dtype, order=order) <= self.memory_budget

    def kept_bytes(self, dtype: torch.dtype, *, order: int = 2) -> int:
        """Estimate the bytes of the graphs of all chunks, and of the vectors that come with them."""
        graphs = dtype.itemsize / self.dtype.itemsize * self.graph_bytes_per_sample * self.n_samples
        # of P numbers: each chunk's gradient, their sum, and θ
        vectors = (self.data.n_chunks + 2) * self.n_parameters * dtype.itemsize
        return int(graphs + vectors) if order == 2 else int((1 + _GRAPH_OF_PRODUCT) * graphs + 2 * vectors)

    def batches_products(self, theta: Tensor) -> bool:
        """Where calls cost more than arithmetic (benchmarks/oracle.py)."""
        return self.data.chunk_size * theta.numel() <= _CALL_BOUND

    def settings(self, theta: Tensor) -> Any:
        """Evaluate with kernels that have second derivatives, TF32 off unless asked for."""
        return exact_derivatives(
            theta.device,
            allow_tf32=self._allow_tf32,
            recurrent=self._recurrent,
            weight_norm=self._weight_norm,
        )

    # ------------------------------------------------------------------ values and derivatives

    @property
    def is_plain(self) -> bool:
        """Whether the loss does what this class says, and no class of somebody else's."""
        return type(self) is NetworkLoss

    @property
    def is_free(self) -> bool:
        """Whether nothing is in the places of the net's parameters."""
        return self._placement is None

    def _evaluated(self, theta: Tensor, *, accuracy: bool) -> Evaluation:
        counts = accuracy and self.classifies
        captured = self._captures.evaluated(self, theta, accuracy=counts)
        return super()._evaluated(theta, accuracy=accuracy) if captured is None else captured

    def _linearized(
        self, theta: Tensor, *, count: Count, count_third: Count, accuracy: bool, keep: bool
    ) -> Linearization:
        counts = accuracy and self.classifies
        captured = (
            self._captures.linearized(self, theta, count, count_third, accuracy=counts) if keep else None
        )
        if captured is not None:
            return captured
        return super()._linearized(theta, count=count, count_third=count_third, accuracy=accuracy, keep=keep)

    # ------------------------------------------------------------------ the net at θ

    def outputs(self, theta: Tensor, chunk: Chunk) -> Tensor:
        """Return the net's outputs at θ, shape (n, …), on a chunk of θ's device and dtype, without derivatives."""
        with self.settings(theta), torch.no_grad(), self.in_place(self.leaves(theta.detach())):
            return self.forward(chunk[0])

    @contextmanager
    def in_place(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Put the leaves into the net, for evaluation and differentiation; it comes back as it was."""
        outer = self._placement
        self._placement = placement = Placement(self.net, self.names, leaves, recomputes=self.recomputes)
        try:
            yield
        finally:
            placement.take_out()
            self._placement = outer

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the net's output with the leaves that are in place."""
        assert self._placement is not None
        # Batch-norm in train mode writes its running statistics.
        self._placement.renew_buffers()
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


# What help() shows of LossFunction(…).
LossFunction.__new__.__signature__ = inspect.signature(NetworkLoss.__init__)  # type: ignore[attr-defined]
