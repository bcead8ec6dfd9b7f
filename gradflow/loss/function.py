"""The loss as a function of flat θ."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gradflow.checks import check_count
from gradflow.errors import CheckWarning, InvalidInputError, InvalidTypeError
from gradflow.loss.check import CheckLevel, CheckReport, examine
from gradflow.loss.linearization import Count, Linearization

if TYPE_CHECKING:
    from gradflow.loss.data_loss import DataLoss
    from gradflow.loss.weighted_sum import WeightedSum


class Evaluation(NamedTuple):
    """Value, shape (), and gradient, shape (P,), of a loss, with the accuracy that its forward pass gave.

    The accuracy has shape () and stays where θ is until it is read; None if it wasn't asked for, or the loss doesn't
    classify.
    """

    value: Tensor
    gradient: Tensor
    accuracy: Tensor | None


class LossFunction:
    """The loss of a network over a whole data set, as a function of flat parameters θ.

    Losses are values that add up: ``a + b``, ``a - b``, ``2.0 * a``, ``sum([a, b])``, and
    ``a + 0.01 * gradflow.penalty(f)`` are losses, with exact values and derivatives. Accuracy, and what is known of
    the data, are then those of the first term that has data.

    A network's loss is evaluated on θ's device and in θ's dtype (float32 or float64), whichever the net was built in;
    the data are moved once. Nothing that it is given is changed: net, criterion, data set and θ come back
    as they were, batch-norm's running statistics included.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset or torch.utils.data.DataLoader
        Map-style; items are (inputs…, target). A loader is read in the order of its data set. With `loss_fn` items are
        what it takes, and a list of batches, or one batch, will do.
    criterion : callable, optional
        ``criterion(output, target)``. With ``reduction="mean"`` the loss is the value on the whole data set
        at once (class weights and ``ignore_index`` included), however it is chunked; with ``"none"`` it is
        summed over outputs and averaged over samples; ``"sum"`` is divided by the number of samples. It may
        read ``net.parameters()``, which are then θ. It may couple samples if they are processed at once.
    net : torch.nn.Module
        The network, in the mode in which it is to be evaluated.
    loss_fn : callable, optional
        In the place of a criterion: ``loss_fn(net, batch)``, where the batch is what ``collate_fn`` made (a dictionary,
        a tuple, a dataclass, a graph), its tensors on θ's device and the floating-point ones in its dtype. Returns one
        loss per sample, shape (b,); a pair (sum, weight), for Σ sums / Σ weights; or a scalar, the mean over the batch;
        or a dictionary with "loss" as one of these, whose other numbers are metrics. It may do with the net whatever
        it likes: call parts of it, read its parameters, differentiate its outputs. Default, where there is no criterion
        either: the net's own loss, ``net(**batch).loss``, weighted by the labels that count.
    weight : callable, optional
        ``weight(batch)``, a number: what a mean over a batch counts in the whole. Default: its number of samples.
    metrics : mapping of str to callable, optional
        ``metric(net, batch)`` by name, returning what `loss_fn` may; recorded along runs. "train_accuracy" is the
        accuracy.
    batch_size : int, optional
        How many samples are processed at once. It doesn't change the loss (but for batch-norm in train
        mode, whose statistics are those of a chunk). Default: all when that fits in the memory budget.
    memory_budget : int, optional
        Bytes for data and graphs. Default: half of what is free on the net's device.
    allow_tf32 : bool, default False
        Let CUDA round matrix products to TF32, about three decimal digits.
    mode : {"eval", "train"}, optional
        Evaluate the net in this mode, whatever mode it is in, and leave it in that. Default: in the mode in which it
        is, which must stay the same.
    hvp : {"exact", "difference"}, default "exact"
        Products with the Hessian by differentiating twice; or, where an operation of the net can't be (a fused kernel,
        CTC), by central differences of gradients, two a product, right to about 1e-4 in float32 and 1e-9 in float64.
        "difference" is refused where exact products are to be had, but for ``check=None``.
    check : {"full", "fast", None}, default "full"
        Look at the loss on at most eight samples before it is used, as :meth:`check` does: "fast" without second
        derivatives and differences. A wrong gradient is an error here, and wrong products with the Hessian where they
        are asked for; None lets all of it through, straight-through estimators say.
    compile : {"auto", True, False}, default "auto"
        Replay the operations of a gradient and of a product with the Hessian without Python, which takes a third of
        the time or less on small networks. The numbers are the same to the bit; that is tested, and if they aren't,
        or if anything is in the way, the net itself is evaluated. "auto" does so after 64 evaluations, for small
        networks and criteria that are torch's own modules throughout. True does so at once, for any that can be; they
        must be functions of θ, their tensors and attributes alone, for what else they read is as it was then.
    **dataloader_kwargs
        Options of :class:`torch.utils.data.DataLoader`, such as ``num_workers`` or ``collate_fn``. Those
        that would change the objective (``shuffle``, ``sampler``, ``drop_last``) are errors.

    Attributes
    ----------
    n_parameters : int or None
        P, the length of θ; None for a callable.
    names : tuple of str
        Of the parameters that θ is cut into by :meth:`leaves`.
    n_outputs : int or None
        Numbers that the net gives per sample; None for a callable.
    n_samples : int or None
        Samples in the data set; None for a callable.
    memory_budget : int or None
        Bytes that graphs and data may take; None for a callable.
    classifies : bool
        Whether the targets are classes, so that :meth:`evaluate` gives an accuracy.
    device, dtype
        Of the net; None for a callable.
    stiff_dim : int or None
        Expected dimension of the stiff subspace: the number of outputs, or of classes minus one for cross-entropy
        (Lowell & Kastner 2024).
    metrics : mapping of str to callable
        As given, without the accuracy.
    kinks : sequence of str
        Modules of the net with kinks, such as ReLU, by class name; functions aren't seen.

    Raises
    ------
    NonDeterministicLossError
        If two evaluations differ (dropout, augmentation); the message names the cause.
    CriterionError
        If the value on the whole can't be had from values on chunks, or if it depends on tensors that require a
        gradient and aren't in θ.
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

    A function of the net and a batch, of data that are dictionaries:

    >>> items = [{"x": torch.randn(2), "y": torch.randn(1)} for _ in range(10)]
    >>> loss = LossFunction(
    ...     items, loss_fn=lambda net, batch: (net(batch["x"]) - batch["y"]).square().sum(1), net=net, batch_size=4
    ... )
    >>> loss.describe()["n_chunks"]
    3
    """

    names: tuple[str, ...]
    n_parameters: int | None = None
    n_outputs: int | None = None
    n_samples: int | None = None
    memory_budget: int | None = None
    classifies: bool = False
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    stiff_dim: int | None = None
    kinks: Sequence[str] = ()
    metrics: Mapping[str, Callable[..., Any]] = {}

    _labels: dict[str, Any]
    _rounds: str | None = None  # what to warn of when θ is in float64
    __array_ufunc__ = None  # numpy's numbers leave `number * loss` to the loss

    if TYPE_CHECKING:

        def __init__(
            self,
            dataset: Any,
            criterion: Callable[..., Tensor] | None = None,
            net: nn.Module | None = None,
            *,
            loss_fn: Callable[[nn.Module, Any], Any] | None = None,
            weight: Callable[[Any], Any] | None = None,
            metrics: Mapping[str, Callable[[nn.Module, Any], Any]] | None = None,
            batch_size: int | None = None,
            memory_budget: int | None = None,
            allow_tf32: bool = False,
            mode: Literal["eval", "train"] | None = None,
            hvp: Literal["exact", "difference"] = "exact",
            check: CheckLevel | None = "full",
            compile: bool | Literal["auto"] = "auto",
            **dataloader_kwargs: Any,
        ) -> None: ...

    else:

        def __new__(cls, *args: Any, **kwargs: Any) -> LossFunction:
            """Make the loss of a network, unless it is another kind of loss that is made."""
            if cls is LossFunction:
                cls = kind_of(args, kwargs)
            return super().__new__(cls)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if args or kwargs:
                raise InvalidTypeError(
                    f"{type(self).__name__} takes no arguments: LossFunction is what all losses have in common. "
                    "For the loss of a network derive from gradflow.loss.NetworkLoss, which takes them."
                )

    @staticmethod
    def from_callable(function: Callable[[Tensor], Tensor]) -> LossFunction:
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
        from gradflow.loss.callable import CallableLoss

        return CallableLoss(function)

    # ------------------------------------------------------------------ sums and multiples

    def __add__(self, other: object) -> LossFunction:
        return self._plus(other, 1.0)

    def __radd__(self, other: object) -> LossFunction:
        # sum() starts with 0.
        return self if isinstance(other, int) and other == 0 else self._plus(other, 1.0)

    def __sub__(self, other: object) -> LossFunction:
        return self._plus(other, -1.0)

    def __neg__(self) -> LossFunction:
        return -1.0 * self

    def __mul__(self, weight: float) -> LossFunction:
        from gradflow.loss.weighted_sum import WeightedSum

        return WeightedSum([(weight, self)])

    __rmul__ = __mul__

    def _plus(self, other: object, weight: float) -> WeightedSum:
        from gradflow.loss.weighted_sum import WeightedSum

        if not isinstance(other, LossFunction):
            raise InvalidTypeError(
                f"Expected a loss to add to a loss, got {type(other).__name__}. gradflow.penalty(f) makes one of a "
                "function of θ."
            )
        return WeightedSum([(1.0, self), (weight, other)])

    # ------------------------------------------------------------------ what it is

    @property
    def source(self) -> Any:
        """The loss itself: the name under which its terms were kept apart from it."""
        return self

    @property
    def data_term(self) -> DataLoss | None:
        """The first loss of a network in it; None if there is none."""
        return None

    @property
    def has_exact_products(self) -> bool:
        """Whether products with the Hessian are exact to rounding; they aren't with ``hvp="difference"``."""
        return True

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ, shape (P,), into tensors, one for each of the names."""
        raise NotImplementedError

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """Whether the graphs of all terms at a θ of some dtype fit in memory together.

        Parameters
        ----------
        dtype : torch.dtype
        order : {2, 3}
            Of the derivatives that the graphs are for.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what a record should say of the loss, as JSON values."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hash what the loss is of: data (256 samples where they aren't tensors), and what in the net isn't θ."""
        raise NotImplementedError

    def label(self, **labels: Any) -> LossFunction:
        """Add names (data set, architecture, …) to what :meth:`describe` says; returns itself."""
        self._labels = self._labels | labels
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
        self.check_rows("first()")
        check_count("n", n, least=1)
        assert self.n_samples is not None
        return self if n >= self.n_samples else self.subset(range(n)).label(first=n)

    def subset(self, rows: Sequence[int]) -> LossFunction:
        """Return the loss over some samples, by their numbers, in chunks of the same size; it shares the network."""
        self.check_rows("subset()")
        raise NotImplementedError

    def minibatch(self, rows: Tensor) -> LossFunction:
        """Return the loss over some samples, shape (b,), int64, by their numbers; nothing is checked again.

        Examples
        --------
        >>> dataset = torch.utils.data.TensorDataset(torch.arange(4.0)[:, None], torch.zeros(4, 1))
        >>> loss = LossFunction(dataset, nn.MSELoss(), nn.Linear(1, 1, bias=False))
        >>> loss.minibatch(torch.tensor([2]))(torch.ones(1))
        tensor(4.)
        """
        self.check_rows("minibatch()")
        raise NotImplementedError

    def check_rows(self, what: str) -> None:
        """Refuse `what` if no rows of data can be chosen: of a callable, or of several data sets at once."""
        raise InvalidInputError(f"{what} needs a loss with data; this one is a callable.")

    def on_few_samples(self, n: int) -> LossFunction:
        """Return the loss on at most n samples, in one chunk, whose derivatives nobody has looked at yet."""
        raise NotImplementedError

    @property
    def functions(self) -> list[str]:
        """The subclasses of ``torch.autograd.Function`` that were seen in the graph of the loss."""
        raise NotImplementedError

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
        report = examine(self, theta, level)
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
        term = self._need_net("initialize_parameters()")
        dtype = term.dtype if dtype is None else dtype
        if dtype not in {torch.float32, torch.float64}:
            raise InvalidTypeError(f"Expected dtype float32 or float64, got {dtype}.")
        return term.layout.initialize(gain, seed).to(term.device if device is None else device, dtype)

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
        return self._value(theta)

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the loss, shape (), and its gradient, shape (P,), at flat θ."""
        self.check_theta(theta)
        return self._evaluated(theta, accuracy=False)[:2]

    def evaluated(self, theta: Tensor, *, accuracy: bool = False) -> Evaluation:
        """Evaluate loss and gradient at flat θ, and the accuracy from the same forward pass if it is asked for."""
        self.check_theta(theta)
        return self._evaluated(theta, accuracy=accuracy)

    def linearize(
        self,
        theta: Tensor,
        count: Count = None,
        *,
        count_third: Count = None,
        accuracy: bool = False,
    ) -> Linearization:
        """Evaluate value and gradient at θ and keep what many Hessian–vector products there need.

        Parameters
        ----------
        theta : Tensor, shape (P,)
        count, count_third : callable, optional
            Called with the number of products, for those with the Hessian and those with third derivatives.
        accuracy : bool, default False
            Count on the way what the network classifies right.
        """
        self.check_theta(theta)
        keep = self.keeps_graphs(theta.dtype)
        return self._linearized(theta, count=count, count_third=count_third, accuracy=accuracy, keep=keep)

    def hvp(self, theta: Tensor, vectors: Tensor) -> Tensor:
        """Multiply vectors, shape (P,) or (P, k), by the Hessian at θ.

        For more than one product at the same θ, :meth:`linearize` once and use its ``hvp``.
        """
        return self.linearize(theta).hvp(vectors)

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Return (loss, accuracy) without derivatives; accuracy is NaN where the targets aren't classes."""
        self.check_theta(theta)
        return self._evaluate(theta)

    def measure(self, theta: Tensor) -> dict[str, float]:
        """Return the mean of each metric over the data at θ, by name, without derivatives."""
        self.check_theta(theta)
        return {}

    def _value(self, theta: Tensor) -> Tensor:
        raise NotImplementedError

    def _evaluated(self, theta: Tensor, *, accuracy: bool) -> Evaluation:
        raise NotImplementedError

    def _linearized(
        self, theta: Tensor, *, count: Count, count_third: Count, accuracy: bool, keep: bool
    ) -> Linearization:
        raise NotImplementedError

    def _evaluate(self, theta: Tensor) -> tuple[float, float]:
        raise NotImplementedError

    def _need_net(self, what: str) -> DataLoss:
        if self.data_term is None:
            raise InvalidInputError(
                f"{what} needs a network; this loss is a callable. Pass θ yourself (params=…)."
            )
        return self.data_term

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


def kind_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> type[LossFunction]:
    """Return the kind of loss that arguments are for: of a criterion, or of a function of net and batch."""
    from gradflow.loss.batch_loss import BatchLoss
    from gradflow.loss.network import NetworkLoss

    has_criterion = len(args) > 1 or kwargs.get("criterion") is not None
    if has_criterion and kwargs.get("loss_fn") is not None:
        raise InvalidTypeError(
            "Expected a criterion of output and target, or loss_fn=, a function of net and batch; got both."
        )
    net = args[2] if len(args) > 2 else kwargs.get("net")
    if net is None:
        given = args[1] if len(args) > 1 else None
        hint = "; the second argument is a criterion" if isinstance(given, nn.Module) else ""
        raise InvalidTypeError(
            f"LossFunction needs a network{hint}. Write LossFunction(dataset, criterion, net), or "
            "LossFunction(dataset, loss_fn=f, net=net) for a function f(net, batch), or LossFunction(dataset, net=net) "
            "for a net that returns its loss."
        )
    if not has_criterion:
        return BatchLoss
    for name in ("loss_fn", "weight", "metrics"):
        if kwargs.get(name) is not None:
            raise InvalidTypeError(
                f"{name}= goes with a function of net and batch: LossFunction(dataset, loss_fn=f, net=net, {name}=…)."
            )
    return NetworkLoss


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


def _of_network(
    cls: object,
    dataset: Any,
    criterion: Callable[..., Tensor] | None = None,
    net: nn.Module | None = None,
    *,
    loss_fn: Callable[[nn.Module, Any], Any] | None = None,
    weight: Callable[[Any], Any] | None = None,
    metrics: Mapping[str, Callable[[nn.Module, Any], Any]] | None = None,
    batch_size: int | None = None,
    memory_budget: int | None = None,
    allow_tf32: bool = False,
    mode: Literal["eval", "train"] | None = None,
    hvp: Literal["exact", "difference"] = "exact",
    check: CheckLevel | None = "full",
    compile: bool | Literal["auto"] = "auto",
    **dataloader_kwargs: Any,
) -> None: ...


# What help() shows of LossFunction(…).
LossFunction.__new__.__signature__ = inspect.signature(_of_network)  # type: ignore[attr-defined]
