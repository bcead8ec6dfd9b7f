"""The loss of a network over a data set, as a sum over chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from gradflow.checks import check_count
from gradflow.collective import agree
from gradflow.errors import (
    CriterionError,
    GradflowError,
    InvalidInputError,
    InvalidTypeError,
    NonDeterministicLossError,
)
from gradflow.loss.additivity import Evaluated, weigh_chunks
from gradflow.loss.checkpointing import refuse_reentrant, refusing_reentrant
from gradflow.loss.criteria import ChunkedCriterion, check_broadcast, resolve_reduction
from gradflow.loss.data import Chunk, ChunkedData, default_memory_budget, move
from gradflow.loss.memory import graph_bytes
from gradflow.loss.normalized_weights import has_weight_norm, refuse_moving_norms
from gradflow.loss.numerics import exact_derivatives
from gradflow.loss.parameters import ParameterLayout
from gradflow.loss.placement import Placement, check_replaceable
from gradflow.loss.second_derivatives import SecondDerivatives
from gradflow.loss.source import Term

_PROBE_SAMPLES = 256
_KINKED = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
    nn.Softshrink, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip
# Samples × parameters up to which calls cost more than arithmetic, so that batched products are faster.
_CALL_BOUND = 2**20


class EmpiricalRisk:
    """L(θ) = mean over samples of criterion(net(inputs; θ), target).

    Parameters
    ----------
    dataset, criterion, net
        As in :class:`gradflow.LossFunction`. None of them is changed.
    batch_size : int or None
        Chunk size; None: all at once when that fits in the memory budget.
    memory_budget : int or None
        Bytes; None: half of what is free on the net's device.
    allow_tf32 : bool
    loader_options : dict

    Attributes
    ----------
    n_outputs : int
        Numbers that the net gives per sample.
    classifies : bool
        The targets are classes, so that there is an accuracy.
    data : ChunkedData
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        criterion: Callable[..., Tensor],
        net: nn.Module,
        *,
        batch_size: int | None,
        memory_budget: int | None,
        allow_tf32: bool,
        loader_options: dict[str, Any],
    ) -> None:
        if not isinstance(net, nn.Module):
            raise InvalidTypeError(f"Expected net to be a torch.nn.Module, got {type(net).__name__}.")
        if isinstance(criterion, type):
            raise InvalidTypeError(
                f"Expected an instance as criterion, got the class: {criterion.__name__}()."
            )
        if not callable(criterion):
            raise InvalidTypeError(
                f"Expected criterion to be a callable (output, target) -> loss, got {type(criterion).__name__}."
            )
        check_replaceable(net)
        self.net = net
        self.criterion = criterion
        self.layout = ParameterLayout(net)
        self.n_parameters: int | None = self.layout.n_parameters
        self.names = self.layout.names
        self.device, self.dtype = _device_and_dtype(net)
        refuse_moving_norms(net)
        self.second = SecondDerivatives()
        self.data = ChunkedData(dataset, loader_options)
        self._loader_options = loader_options
        self.allow_tf32 = allow_tf32
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in net.modules())
        self._weight_norm = has_weight_norm(net)
        self._modes = [(m, m.training) for m in net.modules()]
        self._placement: Placement | None = None
        self.recomputes = True  # until it is known
        self._writes_inputs = False
        self._takes_only_all = False
        self.memory_budget = default_memory_budget(self.device) if memory_budget is None else memory_budget
        check_count("memory_budget", self.memory_budget, least=1)

        cuda = [self.device] if self.device.type == "cuda" else []
        theta = self.layout.flatten()
        trainable = [p for p in net.parameters() if p.requires_grad]
        with torch.random.fork_rng(devices=cuda), self.settings(theta), refusing_reentrant():
            with self.in_place(self.leaves(theta)):
                self._probe(batch_size, trainable)

    def subset(self, rows: Sequence[int]) -> EmpiricalRisk:
        """Return the same loss over some samples, in chunks of the same size."""
        part = EmpiricalRisk(
            self.data.subset(rows),
            self.criterion,
            self.net,
            batch_size=self.data.chunk_size,
            memory_budget=self.memory_budget,
            allow_tf32=self.allow_tf32,
            loader_options=self._loader_options,
        )
        part.second = self.second
        return part

    # ------------------------------------------------------------------ at construction

    def _probe(self, batch_size: int | None, trainable: Sequence[Tensor]) -> None:
        """Find out reduction, outputs, memory and chunk size, and refuse what can't be trusted."""
        if self.data.n_samples == 1:
            self._check_batch_norm()
        output, target = self._forward_on_a_few(batch_size)
        self.n_outputs = output[0].numel()
        reduction = resolve_reduction(self.criterion, self._evaluator(output)(output, target), len(output))
        self.chunked = ChunkedCriterion(self.criterion, reduction)
        self._check_what_the_criterion_reads(output, target, trainable)
        self.recomputes = self._finds_recomputation()
        self._graph_bytes_per_sample = self._measure_graph()

        self.data.cut(self._chunk_size(batch_size), self.memory_budget)
        self._check_batch_norm()
        rows = self.data.spread(self._few(min(_PROBE_SAMPLES, max(16, self.data.chunk_size))))
        first, second = self.data.rows(rows), self.data.rows(rows)
        output, target = self._forward_here(first)
        again, target_again = self._forward_here(second)
        self.classifies = count_correct(self.criterion, output, target)[1] > 0
        self._check_deterministic(first, second, (output, target), (again, target_again))
        check_broadcast(self._evaluator(output), output, target)
        self._denominators = self._weigh_chunks(rows, output, batch_size)

    def _few(self, n: int) -> int:
        """Return on how many samples to try something for which n would do."""
        return self.data.n_samples if self._takes_only_all else min(n, self.data.n_samples)

    def _forward_on_a_few(self, batch_size: int | None) -> tuple[Tensor, Tensor]:
        """Return (outputs, targets) of four samples; of all, if the criterion takes nothing else (pairs, say)."""
        N = self.data.n_samples
        try:
            self._forward_here(self.data.head(self._few(2)))
            return self._forward_here(self.data.head(self._few(4)))
        except GradflowError:
            raise
        except Exception as error:
            if N <= 2:
                raise
            if N > max(_PROBE_SAMPLES, batch_size or 0):
                error.add_note(
                    f"This was on at most 4 samples. If it needs all of them, pass batch_size={N}."
                )
                raise
            self._takes_only_all = True
            return self._forward_here(self.data.head(N))

    def _chunk_size(self, batch_size: int | None) -> int:
        N = self.data.n_samples
        if batch_size is not None:
            check_count("batch_size", batch_size, least=1)
            return min(batch_size, N)
        fitting = self.memory_budget // max(1, self._graph_bytes_per_sample)
        # A power of two, so that the same choice is made again when the free memory is about the same.
        return int(agree(N if fitting >= N else 1 << max(0, fitting.bit_length() - 1)))

    def _measure_graph(self) -> int:
        """Measure what the graph of a gradient takes, per sample."""
        small, large = self._few(2), self._few(4)
        if (small, large) == (2, 4):
            return (self._graph_bytes(large) - self._graph_bytes(small)) // 2
        return self._graph_bytes(large) // large

    def _graph_bytes(self, n: int) -> int:
        leaves = self._trainable_leaves()
        with self.in_place(leaves):
            return graph_bytes(lambda: self._value_here(n), leaves, recomputes=self.recomputes)

    def _value_here(self, n: int) -> Tensor:
        """Evaluate the criterion, and sum, on n samples with the leaves that are in place."""
        inputs, target = move(self.data.head(n), self.device, self.dtype)
        output = self._forward(inputs)
        return self._evaluator(output)(output, target).sum()

    def _trainable_leaves(self) -> list[Tensor]:
        return [leaf.detach().requires_grad_(True) for leaf in self.leaves(self.layout.flatten())]

    def _finds_recomputation(self) -> bool:
        """Find out whether differentiation reads the net again: with NaN for its weights, the gradient changes."""
        leaves = self._trainable_leaves()
        with torch.enable_grad(), self.in_place(leaves):
            value = self._value_here(self._few(2))
            if not value.requires_grad:
                return False
            refuse_reentrant(value)
            try:
                here = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            except RuntimeError:  # no derivative: whoever asks for it is told
                return False
        with self.in_place([torch.full_like(leaf, torch.nan) for leaf in leaves]):
            try:
                elsewhere = torch.autograd.grad(value, leaves, allow_unused=True)
            except RuntimeError:
                return True
        return any(
            a is not None and b is not None and bool((a.isnan() != b.isnan()).any())
            for a, b in zip(here, elsewhere, strict=True)
        )

    def _check_what_the_criterion_reads(
        self, output: Tensor, target: Tensor, trainable: Sequence[Tensor]
    ) -> None:
        """Refuse a criterion that depends on tensors that require a gradient and aren't in θ."""
        evaluate = self._evaluator(output)
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
            with self.in_place(self._trainable_leaves()):
                self._reads_weights = evaluate(output.detach().clone(), target.clone()).requires_grad

    def _weigh_chunks(self, rows: Tensor, output: Tensor, batch_size: int | None) -> list[float]:
        """Return how much each chunk has of what the criterion averages over."""
        if self.data.n_chunks == 1:  # untried, so that mini-batches are one chunk as well
            return [float(self.data.n_samples)]
        if self._reads_weights and self.chunked.reduction == "sum":
            raise CriterionError(
                'A criterion with reduction="sum" that reads the weights of the net counts them once per chunk. Use '
                'reduction="mean", where they count once.'
            )
        N, MiB = self.data.n_samples, 2.0**20
        remedy = f"Pass batch_size={N}"
        if batch_size is None:
            remedy += (
                f", which takes about {self._graph_bytes_per_sample * N / MiB:.3g} MiB (memory_budget is "
                f"{self.memory_budget / MiB:.3g} MiB)"
            )
        with torch.no_grad():
            return weigh_chunks(
                self.data, self.chunked, self._evaluator(output), self._outputs_on, rows, f"{remedy}."
            )

    def _outputs_on(self, rows: Tensor) -> Evaluated:
        """Evaluate the net on some items, with the leaves that are in place."""
        inputs, target = move(self.data.rows(rows), self.device, self.dtype)
        return Evaluated(self._forward(inputs), target, len(rows))

    def _forward_here(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return (outputs, targets) of a chunk at the net's present weights; see what the net writes to."""
        inputs, target = move(chunk, self.device, self.dtype)
        theta = self.layout.flatten()
        versions = [t._version for t in inputs], theta._version
        random_state = self._random_state()
        with torch.no_grad(), self.in_place(self.leaves(theta)):
            output = self._forward(inputs)
            self._evaluator(output)(output.clone(), target.clone())
        if not torch.equal(random_state, self._random_state()):
            raise NonDeterministicLossError(self._random_message("The loss draws random numbers"))
        if versions[1] != theta._version:
            raise InvalidInputError(
                "The net writes to its own parameters in forward (an nn.Embedding with max_norm, say), so that the "
                "loss isn't a function of θ. Take that out."
            )
        self._writes_inputs |= versions[0] != [t._version for t in inputs]
        return output, target

    def _check_deterministic(
        self, first: Chunk, second: Chunk, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]
    ) -> None:
        values = [self._evaluator(o)(o, t).sum() for o, t in (one, two)]
        if self.device.type == "cpu":
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
        N, size = self.data.n_samples, self.data.chunk_size
        if normalizes_batches(self.net) and (N % size == 1 or size == 1):
            raise InvalidInputError(
                f"Batch-norm in train mode needs at least two samples in a chunk; of {N} samples in chunks of {size} "
                "the last has one. Choose another batch_size, or call net.eval()."
            )

    def _random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _random_message(self, what: str, *more: str) -> str:
        causes = [f"{name} is {m} in train mode" for name, m in self.net.named_modules() if _drops(m)] + list(
            more
        )
        return (
            f"{what}, so that its gradient and Hessian have no meaning. "
            + (f"Cause: {'; '.join(causes)}. " if causes else "")
            + "Call net.eval(), or take the randomness out."
        )

    # ------------------------------------------------------------------ as a loss source

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ into the net's parameters."""
        return self.layout.split(theta)

    def terms(self, theta: Tensor) -> Iterator[Term]:
        """Return one term per chunk that counts."""
        self._check_modes()
        yield from self._weighted(self.data.on(theta.device, theta.dtype), self._denominators)

    def terms_of(self, chunks: Sequence[Chunk], n_items: Sequence[int]) -> Iterator[Term]:
        """Return the terms of the mean over other chunks than those of the whole, of so many items each."""
        self._check_modes()
        denominators = [float(n) for n in n_items]
        if len(chunks) > 1:
            denominators = [
                self.chunked.denominator(target, n) for (_, target), n in zip(chunks, n_items, strict=True)
            ]
        yield from self._weighted(chunks, denominators)

    def _weighted(self, chunks: Iterable[Chunk], denominators: Sequence[float]) -> Iterator[Term]:
        total = sum(denominators)
        for (inputs, target), d in zip(chunks, denominators, strict=True):
            if d > 0 or total == 0:
                yield self._term(inputs, target, d, total)

    def _check_modes(self) -> None:
        if any(m.training != mode for m, mode in self._modes):
            raise InvalidInputError(
                "The net was switched between train and eval mode after the LossFunction was made, which makes it "
                "another function. Switch it back; a loss in the other mode takes a copy.deepcopy(net) of its own."
            )

    def _term(self, inputs: tuple[Tensor, ...], target: Tensor, d: float, total: float) -> Term:
        def term(leaves: Sequence[Tensor]) -> Tensor:
            assert self._placement is not None
            assert self._placement.leaves is leaves
            output = self._forward(inputs)
            return self.chunked.share(self._evaluator(output), output, target, d, total)

        return term

    def keeps_graphs(self, theta: Tensor) -> bool:
        """Whether the graphs of all chunks fit in the memory budget together."""
        if self.data.n_chunks == 1:
            return True
        scale = theta.element_size() / self.dtype.itemsize
        graphs = scale * self._graph_bytes_per_sample * self.data.n_samples
        # of P numbers: each chunk's gradient, their sum, and θ
        vectors = (self.data.n_chunks + 2) * self.layout.n_parameters * theta.element_size()
        return graphs + vectors <= self.memory_budget

    def batches_products(self, theta: Tensor) -> bool:
        """Where calls cost more than arithmetic (benchmarks/oracle.py)."""
        return self.data.chunk_size * theta.numel() <= _CALL_BOUND

    def settings(self, theta: Tensor) -> Any:
        """Evaluate with kernels that have second derivatives, TF32 off unless asked for."""
        return exact_derivatives(
            theta.device,
            allow_tf32=self.allow_tf32,
            recurrent=self._recurrent,
            weight_norm=self._weight_norm,
        )

    @property
    def kinks(self) -> list[str]:
        """Modules of the net that aren't differentiable everywhere, by class name."""
        return sorted({type(m).__name__ for m in self.net.modules() if isinstance(m, _KINKED)})

    def fingerprint(self) -> str:
        """Hash the data, or 256 of them spread evenly where they aren't tensors, and the net's frozen tensors."""
        digest = self._data_digest.copy()
        _hash(digest, self._frozen())
        return f"{self.data.n_samples} samples, SHA-256 {digest.hexdigest()}"

    @cached_property
    def _data_digest(self) -> Any:
        digest = hashlib.sha256()
        _hash(digest, self.data.tensors(_PROBE_SAMPLES))
        return digest

    def _frozen(self) -> list[Tensor]:
        """Return the net's buffers and the parameters that aren't in θ."""
        frozen = [p for name, p in self.net.named_parameters() if name not in set(self.names)]
        return [*frozen, *self.net.buffers()]

    def describe(self) -> dict[str, Any]:
        """Name net, criterion, data, and how they are cut into chunks."""
        return {
            "net": type(self.net).__name__,
            "criterion": getattr(self.criterion, "__name__", type(self.criterion).__name__),
            "reduction": self.chunked.reduction,
            "n_samples": self.data.n_samples,
            "batch_size": self.data.chunk_size,
            "n_chunks": self.data.n_chunks,
            "n_outputs": self.n_outputs,
            "n_parameters": self.n_parameters,
            "allow_tf32": self.allow_tf32,
            "train_mode": any(m.training for m in self.net.modules()),
        }

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Return loss and accuracy (NaN where the targets aren't classes) without derivatives."""
        self._check_modes()
        total, D = 0.0, sum(self._denominators)
        n_correct = n_counted = 0
        leaves = self.leaves(theta.detach())
        with self.settings(theta), torch.no_grad(), self.in_place(leaves):
            chunks = self.data.on(theta.device, theta.dtype)
            for (inputs, target), d in zip(chunks, self._denominators, strict=True):
                if d == 0 and D > 0:
                    continue
                output = self._forward(inputs)
                total += float(self.chunked.share(self._evaluator(output), output, target, d, D))
                correct, counted = count_correct(self.criterion, output, target)
                n_correct += correct
                n_counted += counted
        return total, n_correct / n_counted if n_counted else float("nan")

    # ------------------------------------------------------------------ the net at θ

    def outputs(self, theta: Tensor, chunk: Chunk) -> Tensor:
        """Return the net's outputs at θ, shape (n, …), on a chunk of θ's device and dtype, without derivatives."""
        with self.settings(theta), torch.no_grad(), self.in_place(self.leaves(theta.detach())):
            return self._forward(chunk[0])

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

    def _forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the net's output with the leaves that are in place."""
        assert self._placement is not None
        # Batch-norm in train mode writes its running statistics.
        self._placement.renew_buffers()
        if self._writes_inputs:
            inputs = tuple(t.clone() for t in inputs)
        output = self.net(*inputs)
        if not isinstance(output, Tensor):
            raise InvalidTypeError(
                f"Expected the net to return one tensor, got {type(output).__name__}. Wrap it in a module that "
                "returns the output that the criterion takes."
            )
        return output

    def _evaluator(self, output: Tensor) -> Callable[..., Tensor]:
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


def normalizes_batches(net: nn.Module) -> bool:
    """Whether a net has batch-norm in train mode, by whose statistics samples know of each other."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in net.modules())


def count_correct(criterion: Callable[..., Any], output: Tensor, target: Tensor) -> tuple[int, int]:
    """Count the samples classified right, and those that count; (0, 0) where targets aren't classes.

    Classes are integer targets against logits, one-hot rows, or 0/1 targets of one logit with
    ``BCEWithLogitsLoss``.
    """
    if output.dim() >= 2 and output.shape[1] >= 2:
        if not target.is_floating_point() and target.shape == output.shape[:1] + output.shape[2:]:
            counted = target != getattr(criterion, "ignore_index", -100)
            right = (output.argmax(1) == target) & counted
            return int(right.sum()), int(counted.sum())
        if target.shape == output.shape and bool(
            ((target == 0) | (target == 1)).all() & (target.sum(1) == 1).all()
        ):
            right = output.argmax(1) == target.argmax(1)
            return int(right.sum()), right.numel()
        return 0, 0
    if isinstance(criterion, nn.BCEWithLogitsLoss) and bool(((target == 0) | (target == 1)).all()):
        right = (output > 0) == (target > 0.5)
        return int(right.sum()), right.numel()
    return 0, 0


def _hash(digest: Any, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)


def _device_and_dtype(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    devices = sorted({str(p.device) for p in net.parameters()})
    dtypes = sorted({str(p.dtype) for p in net.parameters()})
    if len(devices) != 1 or len(dtypes) != 1:
        raise InvalidInputError(
            f"Expected all of the net's parameters on one device and in one dtype, got {', '.join(devices)} and "
            f"{', '.join(dtypes)}. Call net.to(device, dtype)."
        )
    first = next(net.parameters())
    if first.dtype not in {torch.float32, torch.float64}:
        raise InvalidTypeError(f"Expected a net in float32 or float64, got {first.dtype}. Call net.float().")
    return first.device, first.dtype


def _drops(module: nn.Module) -> bool:
    if not module.training:
        return False
    p = getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
    inner = getattr(module, "dropout", 0.0)
    return bool(p) or (isinstance(inner, float) and inner > 0)
