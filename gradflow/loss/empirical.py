"""The loss of a network over a data set, as a sum over chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from gradflow.checks import check_count
from gradflow.collective import agree
from gradflow.errors import InvalidInputError, InvalidTypeError, NonDeterministicLossError
from gradflow.loss.criteria import ChunkedCriterion, check_additive, resolve_reduction
from gradflow.loss.data import Chunk, ChunkedData, cast, default_memory_budget, move
from gradflow.loss.normalized_weights import has_weight_norm, refuse_moving_norms
from gradflow.loss.numerics import exact_derivatives
from gradflow.loss.parameters import ParameterLayout
from gradflow.loss.second_derivatives import SecondDerivatives
from gradflow.loss.source import Term

_PROBE_SAMPLES = 256
_KINKED = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
    nn.Softshrink, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip
# Bytes of a twice differentiable graph over the bytes that the forward pass saves: the backward pass saves
# about as much again, and each differentiation needs room for its own temporaries.
_GRAPH_FACTOR = 4
# Samples × parameters up to which calls cost more than arithmetic, so that batched products are faster.
_CALL_BOUND = 2**20


class EmpiricalRisk:
    """L(θ) = mean over samples of criterion(net(inputs; θ), target).

    Parameters
    ----------
    dataset, criterion, net
        As of :class:`gradflow.LossFunction`. None of them is changed.
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
        self._has_buffers = next(net.buffers(), None) is not None
        self._modes = [(m, m.training) for m in net.modules()]
        self._hooked = [m for m in net.modules() if m._forward_pre_hooks]
        self._writes_inputs = False
        self.memory_budget = default_memory_budget(self.device) if memory_budget is None else memory_budget
        check_count("memory_budget", self.memory_budget, least=1)

        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), self.settings(self.layout.flatten()):
            self._probe(batch_size)

    def subset(self, rows: Sequence[int]) -> EmpiricalRisk:
        """Give the same loss over some samples, in chunks of the same size."""
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

    def _probe(self, batch_size: int | None) -> None:
        """Find out reduction, outputs, memory and chunk size, and refuse what can't be trusted."""
        n = min(self.data.n_samples, 4)
        if n == 1:
            self._check_batch_norm()
        output, target = self._forward_here(self.data.head(n))
        self.n_outputs = output[0].numel()
        reduction = resolve_reduction(self.criterion, self._evaluator(output)(output, target), len(output))
        self.chunked = ChunkedCriterion(self.criterion, reduction)
        self._graph_bytes_per_sample = _GRAPH_FACTOR * self._saved_bytes_per_sample()

        self.data.cut(self._chunk_size(batch_size), self.memory_budget)
        self._check_batch_norm()
        m = min(self.data.n_samples, _PROBE_SAMPLES, max(16, self.data.chunk_size))
        first, second = self.data.head(m, spread=True), self.data.head(m, spread=True)
        output, target = self._forward_here(first)
        again, target_again = self._forward_here(second)
        self.classifies = count_correct(self.criterion, output, target)[1] > 0
        self._check_deterministic(first, second, (output, target), (again, target_again))
        check_additive(self.chunked, self._evaluator(output), output, target)
        if reduction == "mean" and self.data.n_chunks > 1:
            self._denominators = [
                self.chunked.denominator(target, len(inputs[0])) for inputs, target in self.data.host_chunks()
            ]
        else:
            size, total = self.data.chunk_size, self.data.n_samples
            self._denominators = [float(min(size, total - i)) for i in range(0, total, size)]

    def _chunk_size(self, batch_size: int | None) -> int:
        N = self.data.n_samples
        if batch_size is not None:
            check_count("batch_size", batch_size, least=1)
            return min(batch_size, N)
        fitting = self.memory_budget // max(1, self._graph_bytes_per_sample)
        # A power of two, so that the same choice is made again when the free memory is about the same.
        return int(agree(N if fitting >= N else 1 << max(0, fitting.bit_length() - 1)))

    def _saved_bytes_per_sample(self) -> int:
        """Measure what a forward pass saves for its gradient, per sample."""
        N = self.data.n_samples
        small, large = (2, 4) if N >= 4 else (N, N)
        saved = {n: self._saved_bytes(n) for n in {small, large}}
        return (saved[4] - saved[2]) // 2 if N >= 4 else saved[N] // N

    def _saved_bytes(self, n: int) -> int:
        sizes: dict[tuple[int, int], int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr(), tensor.numel()] = tensor.numel() * tensor.element_size()
            return tensor

        chunk = move(self.data.head(n), self.device, self.dtype)
        leaves = [p.requires_grad_(True) for p in self.leaves(self.layout.flatten())]
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = self._forward(leaves, chunk[0])
            self._evaluator(output)(output, chunk[1])
        return sum(sizes.values())

    def _forward_here(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Give (outputs, targets) of a chunk at the net's present weights; see what the net writes to."""
        inputs, target = move(chunk, self.device, self.dtype)
        theta = self.layout.flatten()
        versions = [t._version for t in inputs], theta._version
        random_state = self._random_state()
        with torch.no_grad():
            output = self._forward(self.leaves(theta), inputs)
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
        normalizes = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.net.modules()
        )
        N, size = self.data.n_samples, self.data.chunk_size
        if normalizes and (N % size == 1 or size == 1):
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
        """Give one term per chunk that counts."""
        self._check_modes()
        chunks = self.data.on(theta.device, theta.dtype)
        total = sum(self._denominators)
        for (inputs, target), d in zip(chunks, self._denominators, strict=True):
            if d > 0 or total == 0:
                yield self._term(inputs, target, d, total)

    def terms_of(self, chunks: Sequence[Chunk]) -> Iterator[Term]:
        """Give the terms of the mean over other chunks than those of the whole."""
        self._check_modes()
        denominators = [self.chunked.denominator(target, len(inputs[0])) for inputs, target in chunks]
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
            output = self._forward(leaves, inputs)
            return self.chunked.share(self._evaluator(output), output, target, d, total)

        return term

    def keeps_graphs(self, theta: Tensor) -> bool:
        """Whether the graphs of all chunks fit in the memory budget together."""
        if self.data.n_chunks == 1:
            return True
        scale = theta.element_size() / self.dtype.itemsize
        return scale * self._graph_bytes_per_sample * self.data.n_samples <= self.memory_budget

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
        """Give the net's buffers and the parameters that aren't in θ."""
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
        """Give loss and accuracy (NaN where the targets aren't classes) without derivatives."""
        self._check_modes()
        total, D = 0.0, sum(self._denominators)
        n_correct = n_counted = 0
        leaves = self.leaves(theta.detach())
        with self.settings(theta), torch.no_grad():
            chunks = self.data.on(theta.device, theta.dtype)
            for (inputs, target), d in zip(chunks, self._denominators, strict=True):
                if d == 0 and D > 0:
                    continue
                output = self._forward(leaves, inputs)
                total += float(self.chunked.share(self._evaluator(output), output, target, d, D))
                correct, counted = count_correct(self.criterion, output, target)
                n_correct += correct
                n_counted += counted
        return total, n_correct / n_counted if n_counted else float("nan")

    # ------------------------------------------------------------------ the net at θ

    def outputs(self, theta: Tensor, chunk: Chunk) -> Tensor:
        """Return the net's outputs at θ, shape (n, …), on a chunk of θ's device and dtype, without derivatives."""
        with self.settings(theta), torch.no_grad():
            return self._forward(self.leaves(theta.detach()), chunk[0])

    def _forward(self, leaves: Sequence[Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Give the net's output with `leaves` for its parameters; the net itself stays as it is."""
        device, dtype = leaves[0].device, leaves[0].dtype
        state: dict[str, Tensor] = dict(zip(self.layout.names, leaves, strict=True))
        if (device, dtype) != (self.device, self.dtype):
            for name, frozen in self.net.named_parameters():
                if name not in state:
                    state[name] = cast(frozen, device, dtype)
        if self._has_buffers:
            # Copies: batch-norm in train mode writes its running statistics into them.
            state |= {name: cast(b, device, dtype).clone() for name, b in self.net.named_buffers()}
        if self._writes_inputs:
            inputs = tuple(t.clone() for t in inputs)
        # What pre-forward hooks (weight_norm of old) leave on their modules is taken off again.
        left = [(m, {k: v for k, v in m.__dict__.items() if isinstance(v, Tensor)}) for m in self._hooked]
        try:
            output = functional_call(self.net, state, inputs)
        finally:
            for module, tensors in left:
                module.__dict__.update(tensors)
        if not isinstance(output, Tensor):
            raise InvalidTypeError(
                f"Expected the net to return one tensor, got {type(output).__name__}. Wrap it in a module that "
                "returns the output that the criterion takes."
            )
        return output

    def _evaluator(self, output: Tensor) -> Callable[..., Tensor]:
        """Give the criterion with its buffers (class weights) where the output is."""
        criterion = self.criterion
        if not isinstance(criterion, nn.Module):
            return criterion
        state = {
            name: cast(tensor, output.device, output.dtype).clone()
            for name, tensor in (*criterion.named_buffers(), *criterion.named_parameters())
        }
        if not state:
            return criterion
        return lambda output, target: functional_call(criterion, state, (output, target))


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
