"""What losses of a network over a data set have in common, whatever is computed of a chunk."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradflow.checks import check_count
from gradflow.errors import CheckWarning, InvalidInputError
from gradflow.loss.accuracy import Tally
from gradflow.loss.check import CheckLevel, CheckReport, enforce, examine
from gradflow.loss.data import ChunkedData, add_to_hash, default_memory_budget
from gradflow.loss.difference import Products, check_products, relative_error
from gradflow.loss.kinks import kinks_of
from gradflow.loss.normalized_weights import has_weight_norm, refuse_moving_norms
from gradflow.loss.numerics import exact_derivatives
from gradflow.loss.parameters import ParameterLayout, device_and_dtype
from gradflow.loss.placement import Placement, check_replaceable, unwrapped
from gradflow.loss.second_derivatives import SecondDerivatives
from gradflow.loss.terms import Term, TermLoss

#: The mode in which a net is evaluated.
Mode = Literal["eval", "train"]

_HASHED_SAMPLES = 256
# Samples × parameters up to which calls cost more than arithmetic, so that batched products are faster.
_CALL_BOUND = 2**20
# Estimated error of products by differences that is worth a warning.
_COARSE_PRODUCTS = 1e-2
# Bytes of the graph of H·u over those of the gradient's graph.
_GRAPH_OF_PRODUCT = 2.5


class DataLoss(TermLoss):
    """A loss of a network over a data set, as a sum over chunks.

    A kind of such losses says what a chunk's share is (:meth:`share`), what it has per sample, and how its
    denominators are found.

    Parameters
    ----------
    data : ChunkedData
    net : torch.nn.Module
    mode : {"eval", "train"}, optional
        In which the net is evaluated. Default: that in which it is.
    hvp, memory_budget, allow_tf32
        As of :class:`LossFunction`.

    Attributes
    ----------
    net : torch.nn.Module
        As given; of DataParallel and of torch.compile, the module inside.
    data : ChunkedData
    layout : ParameterLayout
    denominators : list of float
        How much each chunk has of what the loss averages over.
    graph_bytes_per_sample : int
    writes_inputs : bool
        The net changes its inputs, so that it is given copies.
    """

    n_parameters: int
    n_samples: int
    device: torch.device
    dtype: torch.dtype
    memory_budget: int
    denominators: list[float]
    graph_bytes_per_sample: int
    #: A chunk of denominator 0 may have a share that isn't 0.
    counts_without_weight = False

    def __init__(
        self,
        data: ChunkedData,
        net: nn.Module,
        *,
        mode: Mode | None,
        hvp: Products,
        memory_budget: int | None,
        allow_tf32: bool,
    ) -> None:
        net = unwrapped(net)
        check_replaceable(net)
        check_products(hvp)
        if mode not in {None, "eval", "train"}:
            raise InvalidInputError(f'Expected mode as "eval" or "train", got {mode!r}.')
        self.net = net
        self.layout = ParameterLayout(net)
        self.n_parameters = self.layout.n_parameters
        self.names = self.layout.names
        self.device, self.dtype = device_and_dtype(net)
        self.second = SecondDerivatives()
        self.data = data
        self.n_samples = data.n_samples
        self._allow_tf32 = allow_tf32
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in net.modules())
        self._weight_norm = has_weight_norm(net)
        self._mode = mode
        self._sparse: list[Any] = [m for m in net.modules() if getattr(m, "sparse", None) is True]
        self._modes = [(m, m.training if mode is None else mode == "train") for m in net.modules()]
        with self.in_mode():
            refuse_moving_norms(net)
        self._placement: Placement | None = None
        self.recomputes = True  # until it is known
        self.writes_inputs = False
        self.memory_budget = default_memory_budget(self.device) if memory_budget is None else memory_budget
        check_count("memory_budget", self.memory_budget, least=1)
        self.kinks = kinks_of(net)
        self._labels: dict[str, Any] = {}
        self._hvp = hvp

    def _examine(self, check: CheckLevel | None) -> None:
        """Look at the loss that has been made, as :class:`LossFunction` says."""
        self.second.third_is_checked = check is None
        if check is not None:
            with self.in_mode():
                report = examine(self, self.layout.flatten(), check)
                if self._hvp == "difference":
                    report = _without_products(report)
                self._rounds = enforce(report, self)
        if self._hvp == "difference":
            self.by_difference = True
            self.second = SecondDerivatives()
            self._product_error = relative_error(self, self.layout.flatten())
            if self._product_error > _COARSE_PRODUCTS:
                warnings.warn(
                    f"Differences of gradients over two distances differ by {self._product_error:.1e} of the product: "
                    "the loss changes on smaller scales than they see. Use a net in float64.",
                    CheckWarning,
                    stacklevel=4,
                )

    # ------------------------------------------------------------------ what a kind of loss says

    def share(self, chunk: Any, d: float, total: float, tally: Tally | None) -> Tensor:
        """Return the share of the loss that a chunk has, a scalar, with the leaves that are in place.

        Parameters
        ----------
        chunk : object
            On the device and in the dtype of the leaves.
        d, total : float
            The chunk's denominator and the sum of all.
        tally : Tally or None
            Counts what the network classifies right.
        """
        raise NotImplementedError

    def value_on(self, chunk: Any) -> Tensor:
        """Return the loss on a chunk, or that of its samples together, with the leaves that are in place."""
        raise NotImplementedError

    def per_sample(self, theta: Tensor, chunk: Any) -> Tensor | None:
        """Return what the net gives for each sample at θ, shape (n, …), on a chunk; None if that isn't known."""
        raise NotImplementedError

    def denominator(self, chunk: Any, n_items: int) -> float:
        """Return how much a chunk of so many items has of what the loss averages over."""
        raise NotImplementedError

    def of_rows(self, rows: Tensor) -> DataLoss:
        """Return the loss over some items of the data, by their numbers, shape (b,), int64; nothing is checked."""
        raise NotImplementedError

    def subset(self, rows: Sequence[int]) -> DataLoss:
        """Return the loss over some samples, by their numbers, in chunks of the same size; it shares the network."""
        raise NotImplementedError

    # ------------------------------------------------------------------ parts of the data

    @property
    def data_term(self) -> DataLoss:
        """The loss itself."""
        return self

    def check_rows(self, what: str) -> None:
        """There are rows to choose."""

    def minibatch(self, rows: Tensor) -> DataLoss:
        """Return the loss over some samples, shape (b,), int64, by their numbers; nothing is checked again."""
        return self.of_rows(rows)

    def on_few_samples(self, n: int) -> DataLoss:
        """Return the loss on at most n samples, in one chunk, whose derivatives nobody has looked at yet."""
        few = self.of_rows(self.data.spread(min(n, self.data.chunk_size)))
        few.second = SecondDerivatives()
        return few

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
        """Name the net and the data, and how they are cut into chunks."""
        return (
            self._labels
            | {
                "net": type(self.net).__name__,
                "n_samples": self.data.n_samples,
                "batch_size": self.data.chunk_size,
                "n_chunks": self.data.n_chunks,
                "n_parameters": self.n_parameters,
                "allow_tf32": self._allow_tf32,
                "train_mode": any(training for _, training in self._modes),
            }
            | ({"hvp": "difference", "hvp_error": self._product_error} if self.by_difference else {})
        )

    # ------------------------------------------------------------------ terms

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ into the net's parameters."""
        return self.layout.split(theta)

    def terms(self, theta: Tensor, tally: Tally | None = None) -> Iterator[Term]:
        """Return one term per chunk that counts."""
        self.check_modes()
        chunks, denominators = self.chunks(theta)
        total = sum(denominators)
        for chunk, d in zip(chunks, denominators, strict=True):
            if d > 0 or total == 0 or self.counts_without_weight:
                yield self._term(chunk, d, total, tally)

    def check_modes(self) -> None:
        """Refuse a net that is in other modes than when the loss was made."""
        if any(m.training != mode for m, mode in self._modes):
            raise InvalidInputError(
                "The net was switched between train and eval mode after the LossFunction was made, which makes it "
                'another function. Switch it back; or pass LossFunction(…, mode="eval"), which evaluates a net in '
                "that mode whatever mode it is in."
            )

    def chunks(self, theta: Tensor) -> tuple[Iterable[Any], Sequence[float]]:
        """Return the chunks, and how much each has of what the loss averages over."""
        return self.data.on(theta.device, theta.dtype), self.denominators

    def _term(self, chunk: Any, d: float, total: float, tally: Tally | None) -> Term:
        def term(leaves: Sequence[Tensor]) -> Tensor:
            assert self._placement is not None
            assert self._placement.leaves is leaves
            return self.share(chunk, d, total, tally)

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

    # ------------------------------------------------------------------ the net at θ

    @property
    def is_free(self) -> bool:
        """Whether nothing is in the places of the net's parameters."""
        return self._placement is None

    @contextmanager
    def in_place(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Put the leaves into the net, for evaluation and differentiation; it comes back as it was."""
        outer = self._placement
        with self.in_mode():
            placed = self.placed(leaves)
            self._placement = placement = Placement(self.net, self.names, placed, recomputes=self.recomputes)
            placement.leaves = leaves
            try:
                yield
            finally:
                placement.take_out()
                self._placement = outer

    def placed(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what is to stand in the net for some leaves."""
        return leaves

    @contextmanager
    def in_mode(self) -> Iterator[None]:
        """Have the net in the mode in which it is evaluated, if one was given; it comes back in its own.

        Embeddings with sparse gradients have dense ones meanwhile, of the same numbers.
        """
        before = [m.training for m, _ in self._modes]
        if self._mode is not None:
            for module, training in self._modes:
                module.training = training
        for module in self._sparse:
            module.sparse = False
        try:
            yield
        finally:
            for (module, _), training in zip(self._modes, before, strict=True):
                module.training = training
            for module in self._sparse:
                module.sparse = True

    def renew_buffers(self) -> None:
        """Let the net's buffers have its own values before a forward pass: batch-norm in train mode writes to them."""
        assert self._placement is not None
        self._placement.renew_buffers()


def _without_products(report: CheckReport) -> CheckReport:
    """Return what else was found of a loss without exact products; refuse one that has them."""
    names = {"Hessian", "symmetry"}
    looked_at = [finding for finding in report if finding.name in names and math.isfinite(finding.value)]
    if looked_at and all(finding.passed for finding in looked_at):
        raise InvalidInputError(
            'hvp="difference" is for losses that can\'t be differentiated twice; exact products of this one agree with '
            "differences. Leave it out. If differences are meant, pass check=None."
        )
    return CheckReport(tuple(finding for finding in report if finding.name not in names))
