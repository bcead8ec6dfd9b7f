"""Optimisers of torch.optim, and others of that interface, run on views of flat θ."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.flows import Point
from gradflow.flows.base import Needs
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.step_size import FixedStep, StepSize
from gradflow.loss import LossFunction
from gradflow.loss.parameters import as_flat

MakesScheduler = Callable[[Optimizer], Any]


@dataclass(frozen=True)
class Memory:
    """An optimiser with what it remembers at one point of the trajectory.

    Attributes
    ----------
    bench : Bench
        Serves every step; what it holds between them isn't read.
    n_steps : int
        Steps taken.
    saved : mapping
        What :meth:`Bench.save` gave.
    epoch_loss : tuple of float and int
        Sum of the mini-batches' losses in the present epoch, and their number.
    """

    bench: Bench
    n_steps: int
    saved: Mapping[str, Any]
    epoch_loss: tuple[float, int] = (0.0, 0)


class Bench:
    """An optimiser, perhaps with a scheduler, on parameters that are views of a flat θ.

    Parameters
    ----------
    names : iterable of str
        Of the parameters.
    optimizer : Optimizer
        With one group of parameters.
    scheduler : object or None
    """

    def __init__(self, names: Iterable[str], optimizer: Optimizer, scheduler: Any) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._names = tuple(names)
        # An optimiser with a state_dict of its own keeps more than torch's does.
        self._is_plain = type(optimizer).state_dict is Optimizer.state_dict

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the optimiser."""
        parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        return parameters

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return float(self.optimizer.param_groups[0].get("lr", math.nan))

    def save(self) -> dict[str, Any]:
        """Return what optimiser and scheduler remember: tensors, numbers and strings, by parameter name."""
        saved: dict[str, Any] = {}
        if self._is_plain:
            pairs = zip(self._names, self.parameters, strict=True)
            state = self.optimizer.state
            saved["state"] = {name: state[p] for name, p in pairs if p in state}
            group = self.optimizer.param_groups[0]
            saved["group"] = {key: value for key, value in group.items() if key != "params"}
        else:
            saved["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
        if self.scheduler is not None:
            saved["scheduler"] = copy.deepcopy(self.scheduler.state_dict())
        return saved

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take up what was saved; that itself stays as it is."""
        if self._is_plain:
            named = dict(zip(self._names, self.parameters, strict=True))
            state: dict[Tensor, Any] = {
                named[name]: copy.deepcopy(each) for name, each in saved["state"].items()
            }
            self.optimizer.state = defaultdict(dict, state)
            self.optimizer.param_groups[0].update(saved["group"])
        else:
            self.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(saved["scheduler"]))

    def place(self, parts: Iterable[Tensor]) -> None:
        """Make tensors the parameters' values."""
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part


@dataclass(frozen=True)
class TorchOptimizer(Integrator):
    """A class of ``torch.optim``, or of its interface, run as an integrator.

    The optimiser sees parameters of the network's own names and shapes, which are views of one flat θ. With one
    chunk of data the result is that of the plain torch loop, bit for bit.

    A step is given what it asks for by its signature: a closure, where ``step`` requires one (LBFGS); the loss, where
    it has an argument ``loss`` (ELRA); gradients and products with the Hessian, where it has ``hvp`` (ESGD).

    Parameters
    ----------
    scheduler : callable or str, optional
        ``scheduler(optimizer)`` makes a scheduler of ``torch.optim.lr_scheduler``; a string such as
        ``"StepLR(step_size=100, gamma=0.5)"`` names one. ReduceLROnPlateau is given the training loss.
    scheduler_every : {"step", "epoch"}
        When it is stepped. Without mini-batches both are the same.
    clip_norm, clip_value : float, optional
        Bound of the gradient's 2-norm, or of its entries, as of ``torch.nn.utils.clip_grad_norm_`` and
        ``clip_grad_value_``.
    batch_size : int, optional
        Take steps with the gradient of so many samples. Default: of all.
    sample : {"shuffle", "replacement", "order"}
        Mini-batches go through the data in an order that is drawn anew for each epoch, the last batch of which may be
        smaller; or are drawn independently; or go through the data as they are.
    sample_seed : int
        Of that order, and of random numbers that the optimiser draws.
    """

    _: dataclasses.KW_ONLY
    scheduler: MakesScheduler | str | None = None
    scheduler_every: Literal["step", "epoch"] = "step"
    clip_norm: float | None = None
    clip_value: float | None = None
    batch_size: int | None = None
    sample: Literal["shuffle", "replacement", "order"] = "shuffle"
    sample_seed: int = 0

    optimizer: ClassVar[type[Optimizer]]
    order: ClassVar[int] = 1
    discrete: ClassVar[bool] = True
    needs: ClassVar[Needs | None] = None
    family: ClassVar[str | None] = "torch.optim"

    def __post_init__(self) -> None:
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size, least=1)
        check_count("sample_seed", self.sample_seed)
        for name, valid in (
            ("sample", ("shuffle", "replacement", "order")),
            ("scheduler_every", ("step", "epoch")),
        ):
            if getattr(self, name) not in valid:
                raise InvalidInputError(
                    f"Expected {name} as one of {', '.join(valid)}, got {getattr(self, name)!r}."
                )
        self._bench(["θ"], [nn.Parameter(torch.zeros(2, 2))])  # refuses what the classes refuse

    @property
    def own(self) -> dict[str, Any]:
        """The options of the optimiser's class."""
        ours = {field.name for field in dataclasses.fields(TorchOptimizer)}
        return {name: value for name, value in self.settings().items() if name not in ours}

    def _bench(self, names: Iterable[str], parameters: list[nn.Parameter]) -> Bench:
        cls = self.optimizer
        try:
            optimizer = cls(parameters, **self.own)
        except (ValueError, AssertionError) as error:
            raise InvalidInputError(f"{cls.__module__}.{cls.__name__}: {error}") from error
        except TypeError as error:
            raise InvalidTypeError(f"{cls.__module__}.{cls.__name__}: {error}") from error
        return Bench(names, optimizer, self._make_scheduler(optimizer))

    def _make_scheduler(self, optimizer: Optimizer) -> Any:
        if self.scheduler is None:
            return None
        make = read_scheduler(self.scheduler) if isinstance(self.scheduler, str) else self.scheduler
        if not callable(make):
            raise InvalidTypeError(
                "Expected scheduler as a function of the optimiser, such as lambda o: StepLR(o, 100), or a string such "
                f'as "StepLR(step_size=100)", got {type(make).__name__}.'
            )
        scheduler = make(optimizer)
        if not hasattr(scheduler, "step") or not hasattr(scheduler, "state_dict"):
            raise InvalidTypeError(
                f"Expected scheduler(optimizer) to return a scheduler, got {type(scheduler).__name__}."
            )
        return scheduler

    # ------------------------------------------------------------------ time

    @property
    def time_per_lr(self) -> float:
        """Time that a step counts as, over its learning rate."""
        return 1.0

    @property
    def time_definition(self) -> str:
        """Sums of learning rates are no flow time, unless the optimiser is gradient descent."""
        return "sum of learning rates"

    @property
    def step_rule(self) -> StepSize:
        """Every step is the learning rate, times what turns that into time."""
        lr = getattr(self, "lr", None)
        h = self.time_per_lr * float(1.0 if lr is None else lr)
        return FixedStep(h, exact=self.scheduler is None and h > 0)

    @property
    def stochastic(self) -> bool:
        """Whether steps see some of the samples alone."""
        return self.batch_size is not None

    @property
    def stability_threshold(self) -> float | None:
        """λ₁ of the preconditioned Hessian above which the optimiser is unstable; None where that isn't known."""
        return None

    # ------------------------------------------------------------------ steps

    def resolve(self, loss: LossFunction) -> TorchOptimizer:
        """Refuse mini-batches of a loss without data."""
        if self.batch_size is not None:
            loss.check_rows("batch_size")
        return self

    def init(self, point: Point) -> Memory:
        """Return an optimiser that has taken no step."""
        loss = point.field.loss
        parameters = [nn.Parameter(leaf) for leaf in loss.leaves(point.theta.clone())]
        bench = self._bench(loss.names, parameters)
        return Memory(bench, 0, bench.save())

    def step(self, point: Point, h: float, state: Memory) -> StepResult:
        """Let the optimiser take a step from θ, on a copy of it."""
        bench, leaves = state.bench, point.field.loss.leaves
        bench.load(state.saved)
        bench.place(leaves(point.theta.clone()))
        lr = bench.lr
        batch = self._batch(point, state.n_steps)
        value = self._update(bench, batch, leaves)
        saw = (state.epoch_loss[0] + value, state.epoch_loss[1] + 1)
        ends_epoch = (state.n_steps + 1) % self._steps_per_epoch(point.field.loss) == 0
        if bench.scheduler is not None and (self.scheduler_every == "step" or ends_epoch):
            _advance(bench.scheduler, value if self.scheduler_every == "step" else saw[0] / saw[1])
        memory = Memory(bench, state.n_steps + 1, bench.save(), (0.0, 0) if ends_epoch else saw)
        return StepResult(
            as_flat([p.detach() for p in bench.parameters]),
            state=memory,
            h=self.time_per_lr * lr if self.scheduler is not None else None,
            loss=value if self.stochastic else None,
        )

    def _update(self, bench: Bench, batch: Batch, leaves: Callable[[Tensor], list[Tensor]]) -> float:
        """Call the optimiser's step with what it asks for; return the loss before it."""
        wanted = inspect.signature(bench.optimizer.step).parameters
        value, gradient = batch.value, batch.gradient

        def give(gradient: Tensor) -> None:
            for parameter, slope in zip(bench.parameters, leaves(gradient.clone()), strict=True):
                parameter.grad = slope
            if self.clip_value is not None:
                nn.utils.clip_grad_value_(bench.parameters, self.clip_value)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(bench.parameters, self.clip_norm)

        give(gradient)
        step: Any = bench.optimizer.step
        if "hvp" in wanted:
            slopes = [p.grad for p in bench.parameters]
            step(gradients=slopes, hvp=lambda vectors: leaves(batch.hvp(as_flat(vectors))))
        elif "loss" in wanted:
            step(float(value))
        elif "closure" in wanted and wanted["closure"].default is inspect.Parameter.empty:
            fresh = [value]  # the first evaluation is where the step starts, and known

            def closure() -> Tensor:
                if fresh:
                    return fresh.pop()
                loss, slope, _ = batch.evaluate(as_flat([p.detach() for p in bench.parameters]))
                give(slope)
                return loss

            step(closure)
        else:
            step()
        return float(value)

    def state_dict(self, state: Memory) -> dict[str, Any]:
        """Return what optimiser and scheduler remember."""
        return {"n_steps": state.n_steps, "epoch_loss": state.epoch_loss, "saved": state.saved}

    def load_state(self, saved: dict[str, Any], point: Point) -> Memory:
        """Make the optimiser anew, and give it back what it remembered."""
        return dataclasses.replace(self.init(point), **saved)

    # ------------------------------------------------------------------ mini-batches

    def _steps_per_epoch(self, loss: LossFunction) -> int:
        return 1 if self.batch_size is None else -(-(loss.n_samples or 1) // self.batch_size)

    def _batch(self, point: Point, n: int) -> Batch:
        """Return the loss that step n sees: a function of the seed and n alone."""
        if self.batch_size is None:
            return Batch(point)
        loss, N = point.field.loss, point.field.loss.n_samples or 1
        size = min(self.batch_size, N)
        if self.sample == "replacement":
            rows = _generator(self.sample_seed, n).integers(0, N, size)
        else:
            epoch, i = divmod(n, self._steps_per_epoch(loss))
            rows = np.arange(N)
            if self.sample == "shuffle":
                rows = _generator(self.sample_seed, epoch).permutation(N)
            rows = rows[i * size : (i + 1) * size]
        part = point.field.part(loss.minibatch(torch.from_numpy(rows)), len(rows))
        return Batch(part.at(point.theta))

    def preconditioner(self, state: Memory) -> Tensor | None:
        """Return the diagonal of P, shape (P,), with which the update is P⁻¹ times a (momentum of the) gradient.

        From what the optimiser remembers, with ε and bias corrections as it uses them; None where it has none, or
        before the first step.
        """
        return None


class Batch:
    """The loss that a step sees, at the step's start: of all data, or of a mini-batch.

    Parameters
    ----------
    point : Point
        Of the run's field, or of that of the mini-batch.
    """

    def __init__(self, point: Point) -> None:
        self._point = point
        self.evaluate = point.field.evaluate

    @property
    def value(self) -> Tensor:
        """The loss at the start, shape ()."""
        return self._point.value

    @property
    def gradient(self) -> Tensor:
        """Its gradient, shape (P,)."""
        return self._point.gradient

    def hvp(self, vector: Tensor) -> Tensor:
        """Multiply a vector, shape (P,), by the Hessian at the start."""
        return self._point.linearization.hvp(vector)


def _generator(seed: int, n: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, n]))


def _advance(scheduler: Any, loss: float) -> None:
    """Step a scheduler; with the loss where it asks for a metric."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def read_scheduler(text: str) -> MakesScheduler:
    """Read a scheduler given as text, ``NAME`` or ``NAME(option=value, …)``.

    Examples
    --------
    >>> make = read_scheduler("StepLR(step_size=2, gamma=0.5)")
    >>> type(make(torch.optim.SGD([torch.zeros(1)], lr=0.1))).__name__
    'StepLR'
    """
    names = {
        name
        for name, cls in vars(lr_scheduler).items()
        if isinstance(cls, type) and (issubclass(cls, lr_scheduler.LRScheduler)) and name != "LRScheduler"
    } | {"ReduceLROnPlateau"}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        name = call.func.id if isinstance(call, ast.Call) else call.id  # type: ignore[attr-defined]
        keywords = call.keywords if isinstance(call, ast.Call) else []
        if isinstance(call, ast.Call) and call.args:
            raise ValueError("options by name")
        options = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f'Expected scheduler as NAME(option=value, …), such as "StepLR(step_size=100, gamma=0.5)", got {text!r}.'
        ) from error
    if name not in names:
        raise UnknownNameError(f"No scheduler {name!r} in torch.optim.lr_scheduler; {suggest(name, names)}")
    cls = getattr(lr_scheduler, name)

    def make(optimizer: Optimizer) -> Any:
        try:
            return cls(optimizer, **options)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"torch.optim.lr_scheduler.{name}: {error}") from error

    return make
