"""Optimisers of torch.optim, and others of that interface, run on views of flat θ."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.flows import Point
from gradflow.flows.base import Needs
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.optimizers.harness import OptimizerHarness, OptimizerState
from gradflow.integrators.optimizers.minibatch import Sample, draw_rows, steps_per_epoch, take_rows
from gradflow.integrators.step_size import FixedStep, StepSize
from gradflow.loss import LossFunction
from gradflow.loss.parameters import as_flat
from gradflow.optim.scheduler import MakesScheduler, make_scheduler, step_scheduler


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
        Bound of the gradient's 2-norm, or of its entries, as in ``torch.nn.utils.clip_grad_norm_`` and
        ``clip_grad_value_``.
    batch_size : int, optional
        Take steps with the gradient of so many samples. Default: of all.
    sample : {"shuffle", "replacement", "order"}
        Mini-batches go through the data in an order that is drawn anew for each epoch, the last batch of which may be
        smaller; or are drawn independently; or go through the data as they are.
    sample_seed : int
        Seed of that order, and of random numbers that the optimiser draws.
    """

    _: dataclasses.KW_ONLY
    scheduler: MakesScheduler | str | None = None
    scheduler_every: Literal["step", "epoch"] = "step"
    clip_norm: float | None = None
    clip_value: float | None = None
    batch_size: int | None = None
    sample: Sample = "shuffle"
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
        self._harness(["θ"], [nn.Parameter(torch.zeros(2, 2))])  # refuses what the classes refuse

    @property
    def own(self) -> dict[str, Any]:
        """The options of the optimiser's class."""
        ours = {field.name for field in dataclasses.fields(TorchOptimizer)}
        return {name: value for name, value in self.settings().items() if name not in ours}

    def _harness(self, names: Iterable[str], parameters: list[nn.Parameter]) -> OptimizerHarness:
        cls = self.optimizer
        try:
            optimizer = cls(parameters, **self.own)
        except (ValueError, AssertionError) as error:
            raise InvalidInputError(f"{cls.__module__}.{cls.__name__}: {error}") from error
        except TypeError as error:
            raise InvalidTypeError(f"{cls.__module__}.{cls.__name__}: {error}") from error
        scheduler = None if self.scheduler is None else make_scheduler(self.scheduler, optimizer)
        return OptimizerHarness(names, optimizer, scheduler)

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
        """Whether a step sees only some of the samples."""
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

    def init(self, point: Point) -> OptimizerState:
        """Return an optimiser that has taken no step."""
        loss = point.field.loss
        parameters = [nn.Parameter(leaf) for leaf in loss.leaves(point.theta.clone())]
        harness = self._harness(loss.names, parameters)
        return OptimizerState(harness, 0, harness.save())

    def step(self, point: Point, h: float, state: OptimizerState) -> StepResult:
        """Let the optimiser take a step from θ, on a copy of it."""
        harness, leaves = state.harness, point.field.loss.leaves
        harness.load(state.saved)
        harness.place(leaves(point.theta.clone()))
        lr = harness.lr
        batch = self._batch(point, state.n_steps)
        value = self._update(harness, batch, leaves)
        saw = (state.epoch_loss[0] + value, state.epoch_loss[1] + 1)
        ends_epoch = (state.n_steps + 1) % self._steps_per_epoch(point.field.loss) == 0
        if harness.scheduler is not None and (self.scheduler_every == "step" or ends_epoch):
            step_scheduler(harness.scheduler, value if self.scheduler_every == "step" else saw[0] / saw[1])
        after = OptimizerState(harness, state.n_steps + 1, harness.save(), (0.0, 0) if ends_epoch else saw)
        return StepResult(
            as_flat([p.detach() for p in harness.parameters]),
            state=after,
            h=self.time_per_lr * lr if self.scheduler is not None else None,
            loss=value if self.stochastic else None,
        )

    def _update(
        self, harness: OptimizerHarness, batch: Point, leaves: Callable[[Tensor], list[Tensor]]
    ) -> float:
        """Call the optimiser's step with what it asks for; return the loss before it."""
        wanted = inspect.signature(harness.optimizer.step).parameters
        value, gradient = batch.value, batch.gradient

        def give(gradient: Tensor) -> None:
            for parameter, slope in zip(harness.parameters, leaves(gradient.clone()), strict=True):
                parameter.grad = slope
            if self.clip_value is not None:
                nn.utils.clip_grad_value_(harness.parameters, self.clip_value)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(harness.parameters, self.clip_norm)

        give(gradient)
        step: Any = harness.optimizer.step
        if "hvp" in wanted:
            slopes = [p.grad for p in harness.parameters]
            step(gradients=slopes, hvp=lambda vectors: leaves(batch.hvp(as_flat(vectors))))
        elif "loss" in wanted:
            step(float(value))
        elif "closure" in wanted and wanted["closure"].default is inspect.Parameter.empty:
            fresh = [value]  # the first evaluation is where the step starts, and known

            def closure() -> Tensor:
                if fresh:
                    return fresh.pop()
                loss, slope, _ = batch.field.evaluate(as_flat([p.detach() for p in harness.parameters]))
                give(slope)
                return loss

            step(closure)
        else:
            step()
        return float(value)

    def state_dict(self, state: OptimizerState) -> dict[str, Any]:
        """Return what optimiser and scheduler remember."""
        return {"n_steps": state.n_steps, "epoch_loss": state.epoch_loss, "saved": state.saved}

    def load_state(self, saved: dict[str, Any], point: Point) -> OptimizerState:
        """Make the optimiser anew, and give it back what it remembered."""
        return dataclasses.replace(self.init(point), **saved)

    # ------------------------------------------------------------------ mini-batches

    def _steps_per_epoch(self, loss: LossFunction) -> int:
        return steps_per_epoch(loss.n_samples, self.batch_size)

    def _batch(self, point: Point, n: int) -> Point:
        """Return the point of the loss that step n sees."""
        if self.batch_size is None:
            return point
        N = point.field.loss.n_samples or 1
        return take_rows(point, draw_rows(n, N, self.batch_size, self.sample, self.sample_seed))

    # ------------------------------------------------------------------ preconditioner

    def preconditioner(self, state: OptimizerState) -> Tensor | None:
        """Return the diagonal of P, shape (P,), with which the update is P⁻¹ times a (momentum of the) gradient.

        From what the optimiser remembers, with ε and bias corrections as it uses them; None where it has none, or
        before the first step.
        """
        return None
