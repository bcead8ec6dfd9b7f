"""The loss as a function of flat θ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gradflow.checks import check_count
from gradflow.errors import CheckWarning, InvalidInputError, InvalidTypeError
from gradflow.loss.check import LEVELS, CheckLevel, CheckReport, enforce, examine
from gradflow.loss.checkpointing import DIFFERENTIATED_LATER
from gradflow.loss.criteria import is_cross_entropy
from gradflow.loss.empirical import EmpiricalRisk
from gradflow.loss.linearization import Linearization, value_and_gradient
from gradflow.loss.minibatch import MiniBatch
from gradflow.loss.source import CallableLoss, LossSource, accumulate


class LossFunction:
    """The loss of a network over a whole data set, as a function of flat parameters θ.

    It is evaluated on θ's device and in θ's dtype (float32 or float64), whichever the net was built in;
    the data are moved once. Nothing that it is given is changed: net, criterion, data set and θ come back
    as they were, batch-norm's running statistics included.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Map-style; items are (inputs…, target).
    criterion : callable
        ``criterion(output, target)``. With ``reduction="mean"`` the loss is the value on the whole data set
        at once (class weights and ``ignore_index`` included), however it is chunked; with ``"none"`` it is
        summed over outputs and averaged over samples; ``"sum"`` is divided by the number of samples. It may
        read ``net.parameters()``, which are then θ. It may couple samples if they are processed at once.
    net : torch.nn.Module
        The network, in the mode in which it is to be evaluated.
    batch_size : int, optional
        How many samples are processed at once. It doesn't change the loss (but for batch-norm in train
        mode, whose statistics are those of a chunk). Default: all when that fits in the memory budget.
    memory_budget : int, optional
        Bytes for data and graphs. Default: half of what is free on the net's device.
    allow_tf32 : bool, default False
        Let CUDA round matrix products to TF32, about three decimal digits.
    check : {"full", "fast", None}, default "full"
        Look at the loss on at most eight samples before it is used, as :meth:`check` does: "fast" without second
        derivatives and differences. A wrong gradient is an error here, and wrong products with the Hessian where they
        are asked for; None lets all of it through, straight-through estimators say.
    **dataloader_kwargs
        Options of :class:`torch.utils.data.DataLoader`, such as ``num_workers`` or ``collate_fn``. Those
        that would change the objective (``shuffle``, ``sampler``, ``drop_last``) are errors.

    Attributes
    ----------
    n_parameters : int or None
        P; None for a callable.
    n_outputs : int or None
        Numbers that the net gives per sample; None for a callable.
    n_samples : int or None
    classifies : bool
        Whether the targets are classes, so that :meth:`evaluate` gives an accuracy.
    device, dtype
        Of the net; None for a callable.
    source : LossSource
        Its terms, as the linearization differentiates them.
    stiff_dim : int or None
        Expected dimension of the stiff subspace: the number of outputs, minus one for cross-entropy
        (Lowell & Kastner 2024).

    Raises
    ------
    NonDeterministicLossError
        If two evaluations differ (dropout, augmentation); the message names the cause.
    CriterionError
        If the criterion's value on the whole can't be had from its values on chunks, or if it depends on
        tensors that require a gradient and aren't in θ.
    InvalidInputError
        If the net uses reentrant activation checkpointing.
    InexactDerivativeError
        If the gradient isn't that of the loss.

    Examples
    --------
    >>> net = nn.Linear(2, 1)
    >>> dataset = torch.utils.data.TensorDataset(torch.randn(10, 2), torch.randn(10, 1))
    >>> loss = LossFunction(dataset, nn.MSELoss(), net)
    >>> theta = loss.parameters()
    >>> theta.shape
    torch.Size([3])
    >>> value, gradient = loss.gradient(theta)
    >>> torch.equal(value, loss(theta))
    True
    """

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
        **dataloader_kwargs: Any,
    ) -> None:
        if check is not None and check not in LEVELS:
            raise InvalidInputError(f'Expected check as "full", "fast" or None, got {check!r}.')
        risk = EmpiricalRisk(
            dataset,
            criterion,
            net,
            batch_size=batch_size,
            memory_budget=memory_budget,
            allow_tf32=allow_tf32,
            loader_options=dataloader_kwargs,
        )
        self.source: LossSource = risk
        self._risk: EmpiricalRisk | None = risk
        self._labels: dict[str, Any] = {}
        self._rounds: str | None = None  # what to warn of when θ is in float64
        if check is not None:
            self._rounds = enforce(examine(risk, risk.layout.flatten(), check), risk)

    @classmethod
    def from_callable(cls, function: Callable[[Tensor], Tensor]) -> LossFunction:
        """Make a loss of any differentiable scalar function of flat θ.

        Parameters
        ----------
        function : callable
            ``function(theta) -> Tensor``, a scalar, for θ of shape (P,), written in torch.

        Returns
        -------
        LossFunction

        Examples
        --------
        >>> bowl = LossFunction.from_callable(lambda x: 0.5 * (x**2).sum())
        >>> bowl.hvp(torch.zeros(2), torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
        """
        if not callable(function):
            raise InvalidTypeError(f"Expected a callable theta -> scalar, got {type(function).__name__}.")
        loss = cls.__new__(cls)
        loss.source = CallableLoss(function)
        loss._risk = None
        loss._labels = {}
        loss._rounds = None
        return loss

    # ------------------------------------------------------------------ what it is

    @property
    def n_parameters(self) -> int | None:
        """P, the length of θ."""
        return self.source.n_parameters

    @property
    def n_outputs(self) -> int | None:
        """Numbers that the net gives per sample."""
        return self._risk.n_outputs if self._risk else None

    @property
    def n_samples(self) -> int | None:
        """Number of samples in the data set."""
        return self._risk.data.n_samples if self._risk else None

    @property
    def memory_budget(self) -> int | None:
        """Bytes that graphs and data may take; None for a callable."""
        return self._risk.memory_budget if self._risk else None

    @property
    def classifies(self) -> bool:
        """Whether the targets are classes, so that there is an accuracy."""
        return self._risk is not None and self._risk.classifies

    @property
    def device(self) -> torch.device | None:
        """Device of the net."""
        return self._risk.device if self._risk else None

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the net."""
        return self._risk.dtype if self._risk else None

    @property
    def stiff_dim(self) -> int | None:
        """Expected dimension of the stiff subspace."""
        if self._risk is None:
            return None
        n = self._risk.n_outputs
        return max(1, n - 1) if is_cross_entropy(self._risk.criterion) else n

    @property
    def kinks(self) -> list[str]:
        """Modules of the net with kinks, such as ReLU, by class name; functions aren't seen."""
        return self._risk.kinks if self._risk else []

    def describe(self) -> dict[str, Any]:
        """Return what a record should say of the loss, as JSON values."""
        return self._labels | self.source.describe()

    def fingerprint(self) -> str:
        """Hash what the loss is of: data (256 samples where they aren't tensors), and what in the net isn't θ."""
        return self.source.fingerprint()

    def label(self, **labels: Any) -> LossFunction:
        """Add names (data set, architecture, …) to what :meth:`describe` says; returns itself."""
        self._labels |= labels
        return self

    def first(self, n: int) -> LossFunction:
        """Return the loss over the first n samples alone, in chunks of the same size.

        Parameters
        ----------
        n : int
            From the number of samples on, the loss itself is returned.

        Examples
        --------
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(10, 2), torch.randn(10, 1))
        >>> LossFunction(dataset, nn.MSELoss(), nn.Linear(2, 1)).first(4).n_samples
        4
        """
        N = self._need_net("first()").data.n_samples
        check_count("n", n, least=1)
        return self if n >= N else self.subset(range(n)).label(first=n)

    def subset(self, rows: Sequence[int]) -> LossFunction:
        """Return the loss over some samples, by their numbers, in chunks of the same size; it shares the network."""
        loss = LossFunction.__new__(LossFunction)
        loss.source = loss._risk = self._need_net("subset()").subset(rows)
        loss._labels = dict(self._labels)
        loss._rounds = None
        return loss

    def minibatch(self, rows: Tensor) -> LossFunction:
        """Return the loss over some samples, shape (b,), int64, by their numbers; nothing is checked again.

        Examples
        --------
        >>> dataset = torch.utils.data.TensorDataset(torch.arange(4.0)[:, None], torch.zeros(4, 1))
        >>> loss = LossFunction(dataset, nn.MSELoss(), nn.Linear(1, 1, bias=False))
        >>> loss.minibatch(torch.tensor([2]))(torch.ones(1))
        tensor(4.)
        """
        loss = LossFunction.__new__(LossFunction)
        loss.source = MiniBatch(self._need_net("minibatch()"), rows)
        loss._risk = None
        loss._labels = self._labels
        loss._rounds = None
        return loss

    def check(self, theta: Tensor | None = None, *, level: CheckLevel = "full") -> CheckReport:
        """Measure whether the loss is what it says: samples that don't touch each other, precision, derivatives.

        Near θ, on at most eight samples of a net's data, in float64 if the net can: the net on all of them at once
        against two at a time; casts to fewer digits; ∇L·v against differences of the loss; H·v against those of the
        gradient, and uᵀHv against vᵀHu. Nothing is changed, and random numbers come from a generator of its own.

        Parameters
        ----------
        theta : Tensor, shape (P,), optional
            Default: the net's present weights. A callable's loss needs it.
        level : {"full", "fast"}
            "fast" leaves out the derivatives.

        Returns
        -------
        CheckReport
            To print; ``passed`` says whether nothing wrong was found, and a row without a number why there is none.
            What is wrong is a ``CheckWarning`` each.

        Examples
        --------
        >>> bowl = LossFunction.from_callable(lambda x: 0.5 * (x**2).sum())
        >>> bowl.check(torch.ones(2)).passed
        True
        """
        theta = self.parameters() if theta is None else theta
        self.check_theta(theta)
        report = examine(self.source, theta, level)
        for finding in report:
            if not finding.passed:
                warnings.warn(finding.message, CheckWarning, stacklevel=2)
        return report

    # ------------------------------------------------------------------ θ

    def parameters(self) -> Tensor:
        """Copy the net's present weights as flat θ, shape (P,)."""
        return self._need_net("parameters()").layout.flatten()

    def initialize_parameters(
        self,
        gain: float = math.sqrt(2.0),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw a new θ: Kaiming normal weights, zero biases.

        Parameters
        ----------
        gain : float, default √2
            Weights have standard deviation gain/√fan_in. Norm layers keep their own initialisation.
        device, dtype : optional
            Default: the net's. The numbers are the same on every device, and in every dtype but for
            rounding.
        seed : int, optional
            Seed of a generator of its own. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (P,)
        """
        risk = self._need_net("initialize_parameters()")
        dtype = risk.dtype if dtype is None else dtype
        if dtype not in {torch.float32, torch.float64}:
            raise InvalidTypeError(f"Expected dtype float32 or float64, got {dtype}.")
        return risk.layout.initialize(gain, seed).to(risk.device if device is None else device, dtype)

    def state_dict(self, theta: Tensor) -> dict[str, Tensor]:
        """Return a state dict with θ in it, for ``load_state_dict`` of the plain net."""
        self.check_theta(theta)
        return self._need_net("state_dict()").layout.state_dict(theta)

    # ------------------------------------------------------------------ values and derivatives

    def __call__(self, theta: Tensor) -> Tensor:
        """Evaluate the loss, shape (), at flat θ, shape (P,); differentiable if θ requires a gradient.

        Raises
        ------
        InvalidInputError
            If θ requires a gradient and the net uses activation checkpointing, which runs the net again when it is
            differentiated: by then its weights aren't θ. :meth:`gradient` and :meth:`linearize` do it right.
        """
        self.check_theta(theta)
        if self.source.recomputes and theta.requires_grad and torch.is_grad_enabled():
            raise InvalidInputError(DIFFERENTIATED_LATER)
        value = None
        leaves = self.source.leaves(theta)
        with self.source.settings(theta), self.source.in_place(leaves):
            for term in self.source.terms(theta):
                value = accumulate(value, term(leaves))
        assert value is not None
        return value

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the loss, shape (), and its gradient, shape (P,), at flat θ."""
        self.check_theta(theta)
        return value_and_gradient(self.source, theta)

    def linearize(self, theta: Tensor) -> Linearization:
        """Evaluate value and gradient at θ and keep what many Hessian–vector products there need."""
        self.check_theta(theta)
        return Linearization(self.source, theta)

    def hvp(self, theta: Tensor, vectors: Tensor) -> Tensor:
        """Multiply vectors, shape (P,) or (P, k), by the Hessian at θ.

        For more than one product at the same θ, :meth:`linearize` once and use its ``hvp``.
        """
        return self.linearize(theta).hvp(vectors)

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Return (loss, accuracy) without derivatives; accuracy is NaN where the targets aren't classes."""
        self.check_theta(theta)
        if self._risk is None:
            with torch.no_grad():
                return float(self(theta)), float("nan")
        return self._risk.evaluate(theta)

    def _need_net(self, what: str) -> EmpiricalRisk:
        if self._risk is None:
            raise InvalidInputError(
                f"{what} needs a network; this loss is a callable. Pass θ yourself (params=…)."
            )
        return self._risk

    def check_theta(self, theta: Tensor) -> None:
        """Refuse what can't be θ: not a tensor, wrong shape, a dtype other than float32 and float64."""
        if not isinstance(theta, Tensor):
            raise InvalidTypeError(f"Expected θ as a flat torch.Tensor, got {type(theta).__name__}.")
        if theta.dtype not in {torch.float32, torch.float64}:
            raise InvalidTypeError(
                f"Expected θ in float32 or float64, got {theta.dtype}. Convert with θ.double()."
            )
        if theta.device.type == "meta":
            raise InvalidInputError("Expected θ on a device that holds numbers, got the meta device.")
        P = self.n_parameters
        if theta.dim() != 1 or theta.numel() == 0 or (P is not None and theta.numel() != P):
            raise InvalidInputError(
                f"Expected flat θ of shape ({'P' if P is None else P},), got {tuple(theta.shape)}. "
                "loss.parameters() gives the net's weights in that form."
            )
        if self._rounds is not None and theta.dtype == torch.float64:
            message, self._rounds = self._rounds, None
            warnings.warn(message, CheckWarning, stacklevel=3)


#: A loss as a caller may give it.
Loss = LossFunction | Callable[[Tensor], Tensor]


def as_loss(loss: object) -> LossFunction:
    """Take a loss, or make one of a callable."""
    if isinstance(loss, LossFunction):
        return loss
    if isinstance(loss, nn.Module) or not callable(loss):
        raise InvalidTypeError(
            f"Expected loss as a gradflow.LossFunction or a callable θ -> scalar, got {type(loss).__name__}. "
            "LossFunction(dataset, criterion, net) makes one of a network."
        )
    return LossFunction.from_callable(loss)
