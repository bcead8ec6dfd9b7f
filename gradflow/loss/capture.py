"""Gradients and products of small networks, captured as tapes: the same numbers without Python's overhead.

Below some thousand parameters a gradient costs little arithmetic and a lot of Python: modules, autograd, settings.
After a while the oracle of :mod:`gradflow.loss.graphs` is recorded once, by the operations that it calls in torch, and
these are replayed. The replay must give the oracle's bits, or it isn't used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from gradflow.errors import CheckWarning, GradflowError, InvalidInputError
from gradflow.loss.accuracy import Tally
from gradflow.loss.capturable import Surroundings, fits, obstacle
from gradflow.loss.function import Evaluation
from gradflow.loss.graphs import GraphLinearization, value_and_gradient
from gradflow.loss.linearization import Count, Linearization, ThirdDerivative
from gradflow.loss.recording import UncapturableError, record, record_stages
from gradflow.loss.tape import Tape

if TYPE_CHECKING:
    from gradflow.loss.network import NetworkLoss

#: Whether evaluations may be captured: "auto" where that is as safe as evaluating the net itself.
Compile = bool | Literal["auto"]
Run = Callable[..., tuple[Tensor, ...]]

# Evaluations of a kind after which a capture, about 20 ms, has been worth it.
_PATIENCE = 64


class Captures:
    """What has been captured of the loss of a network, which every method is given.

    Parameters
    ----------
    compile : {"auto", True, False}
        As for :class:`LossFunction`.

    Attributes
    ----------
    surroundings : object or None
        What the captures take for granted; None before there are any.
    """

    def __init__(self, compile: Compile) -> None:
        self.compile = compile
        self.surroundings: Surroundings | None = None
        self._counts: dict[Any, int] = {}
        self._made: dict[Any, Any] = {}  # None where there can't be one
        self._takes_third = False

    def __reduce__(self) -> tuple[type[Captures], tuple[Compile]]:
        """Copy and pickle the option alone: captures are made again."""
        return Captures, (self.compile,)

    def evaluated(self, loss: NetworkLoss, theta: Tensor, *, accuracy: bool) -> Evaluation | None:
        """Evaluate loss and gradient at θ, shape (P,), by a capture; None if there is none."""
        make = partial(_captured_gradient, loss, theta, accuracy)
        run: Run | None = self._get(loss, theta, ("gradient", accuracy), make)
        if run is None:
            return None
        value, gradient, *rate = run(theta)
        return Evaluation(value, gradient, rate[0] if rate else None)

    def linearized(
        self, loss: NetworkLoss, theta: Tensor, count: Count, count_third: Count, *, accuracy: bool
    ) -> Linearization | None:
        """Linearize at θ, shape (P,), by a capture; None if there is none."""
        if self._takes_third:
            return None
        make = partial(CapturedProducts, loss, theta, accuracy)
        products: CapturedProducts | None = self._get(loss, theta, ("products", accuracy), make)
        return (
            None
            if products is None
            else CapturedLinearization(self, products, loss, theta, count, count_third)
        )

    def block(self, lin: CapturedLinearization, rows: Tensor) -> Run | None:
        """Return a capture of products with as many vectors as there are rows, shape (k, P); None if there is none."""
        products = lin.products
        make = partial(products.block, lin, rows)
        return self._after_a_while(lin.loss, lin.theta, (id(products), len(rows)), make)

    def prefer_graphs(self) -> None:
        """Linearize by graphs from now on: they are needed for third derivatives."""
        self._takes_third = True

    def _get(self, loss: NetworkLoss, theta: Tensor, what: Any, make: Callable[[], Any]) -> Any:
        if self.compile is False or not fits(loss, theta):
            return None
        if self.surroundings is not None and self.surroundings.changed():
            self.surroundings = None
            self._counts.clear()
            self._made.clear()
        return self._after_a_while(loss, theta, (what, theta.device, theta.dtype), make)

    def _after_a_while(self, loss: NetworkLoss, theta: Tensor, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was captured under a key; capture it when it has been asked for often enough."""
        if key in self._made:
            return self._made[key]
        self._counts[key] = self._counts.get(key, 0) + 1
        if self.compile == "auto" and self._counts[key] < _PATIENCE:
            return None
        try:
            why = obstacle(loss, theta, any_code=self.compile is True)
            self.surroundings = self.surroundings or Surroundings(loss)
            self._made[key] = None if why else make()
        except (GradflowError, torch.OutOfMemoryError):  # the oracle will say it, too
            return None
        except Exception as error:  # whatever it is, the oracle remains
            self._made[key], why = None, str(error).partition("\n")[0] or type(error).__name__
        if why is not None and self.compile is True:
            message = (
                f"compile=True has no effect: {why}. The net itself is evaluated, as with compile=False."
            )
            warnings.warn(message, CheckWarning, stacklevel=6)
        return self._made[key]


class CapturedLinearization(Linearization):
    """A linearization by captured products; third derivatives, and what isn't captured, are by graphs."""

    def __init__(
        self,
        captures: Captures,
        products: CapturedProducts,
        loss: NetworkLoss,
        theta: Tensor,
        count: Count,
        count_third: Count,
    ) -> None:
        loss.second.demand()
        super().__init__(loss, theta.detach().clone(), count, count_third)
        self.loss, self.products, self._captures = loss, products, captures
        self.value, self.gradient, *rest = products.point(self.theta)
        self.accuracy = rest.pop(0) if products.accuracy else None
        self.saved = rest
        self._surroundings = captures.surroundings
        self._graphs: list[GraphLinearization] = []  # shared with copies

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the Hessian."""
        if len(rows) <= 2 or not self.loss.batches_products(self.theta):
            products = [self.products.one(_at_its_start(v), *self.saved)[0] for v in rows]
            return torch.stack(products) if products else torch.zeros_like(rows)
        rows = _at_its_start(rows)
        block = self._captures.block(self, rows)
        return self.by_graphs().multiply(rows) if block is None else block(rows, *self.saved)[0]

    def by_graphs(self) -> GraphLinearization:
        """Return the same linearization by graphs, which are built when they are first asked for."""
        if not self._graphs:
            if self._surroundings is None or self._surroundings.changed():
                raise InvalidInputError(
                    "The net was changed after the loss was linearized. Linearize it again."
                )
            self._graphs.append(GraphLinearization(self.loss, self.theta, None, None, None, keep=True))
        return self._graphs[0]

    def _third(self, direction: Tensor) -> ThirdDerivative:
        self._captures.prefer_graphs()
        return self.by_graphs().counted(None, self.count_thirds)._third(direction)


class CapturedProducts:
    """The gradient at θ, and products with the Hessian from what was saved there.

    Parameters
    ----------
    loss : NetworkLoss
    theta : Tensor, shape (P,)
        Where they are recorded; they hold for any.
    accuracy : bool
        Whether the gradient comes with the accuracy.

    Attributes
    ----------
    point : callable
        θ → value, gradient, the accuracy if it is asked for, and what products need.
    one : callable
        v, shape (P,), and what products need → H·v.
    """

    def __init__(self, loss: NetworkLoss, theta: Tensor, accuracy: bool) -> None:
        self.accuracy = accuracy
        vector = _rows(theta, 1)[0].clone()
        stages = record_stages(
            partial(_linearized, loss, accuracy), _multiplied, theta.detach().clone(), vector
        )
        self._saved_slots = stages.saved
        self.point = _compiled(loss, theta, stages.first)
        self.one = _compiled(loss, theta, stages.second)
        for at in _two_points(theta):
            exact, found = _linearized(loss, accuracy, at)
            own, saved = _cut(self.point(at), len(found))
            _check_same(own, found)
            for v in (vector, exact.gradient):
                _check_same(self.one(v, *saved), [_multiplied(exact, v)])

    def block(self, lin: CapturedLinearization, rows: Tensor) -> Run:
        """Capture products with as many vectors as there are rows, shape (k, P), from what is saved already."""
        first = partial(_linearized, lin.loss, self.accuracy)
        stages = record_stages(first, _multiplied, lin.theta.clone(), rows.clone(), self._saved_slots)
        run = _compiled(lin.loss, lin.theta, stages.second)
        for v in (rows, _rows(lin.theta, len(rows))):
            _check_same(run(v, *lin.saved), [lin.by_graphs().multiply(v)])
        return run


def _linearized(loss: NetworkLoss, accuracy: bool, theta: Tensor) -> tuple[GraphLinearization, list[Tensor]]:
    lin = GraphLinearization(loss, theta, None, None, Tally() if accuracy else None, keep=True)
    return lin, [lin.value, lin.gradient] + ([] if lin.accuracy is None else [lin.accuracy])


def _multiplied(lin: GraphLinearization, vectors: Tensor) -> Tensor:
    """Multiply one vector, shape (P,), or several in rows, shape (k, P)."""
    return lin.multiply(vectors[None])[0] if vectors.dim() == 1 else lin.multiply(vectors)


def _captured_gradient(loss: NetworkLoss, theta: Tensor, accuracy: bool) -> Run:
    """Capture θ → value, gradient, and the accuracy if it is asked for."""

    def oracle(at: Tensor) -> Sequence[Tensor]:
        tally = Tally() if accuracy else None
        found = value_and_gradient(loss, at, tally)
        return found if tally is None else (*found, tally.accuracy)

    tape = record(oracle, theta.detach().clone())
    run = _compiled(loss, theta, tape.part(tape.inputs, tape.outputs))
    for at in _two_points(theta):
        _check_same(run(at), oracle(at))
    return run


def _compiled(loss: NetworkLoss, theta: Tensor, tape: Tape) -> Run:
    """Compile a tape; on an accelerator, under the settings that were recorded."""
    run, settings = tape.compiled(), partial(loss.settings, theta)
    if theta.device.type == "cpu":
        return run

    def under_settings(*inputs: Tensor) -> tuple[Tensor, ...]:
        with settings():
            return run(*inputs)

    return under_settings


def _cut(tensors: tuple[Tensor, ...], n: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tensors[:n], tensors[n:]


def _check_same(found: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Refuse a capture that doesn't give the bits of the oracle."""
    for a, b in zip(found, exact, strict=True):
        if a.dtype != b.dtype or not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise UncapturableError("what was captured gives other numbers than the net")


def _two_points(theta: Tensor) -> list[Tensor]:
    """Return θ, and another point near it."""
    theta = theta.detach()
    return [theta.clone(), theta + 0.01 * (1.0 + theta.abs()) * _rows(theta, 1)[0]]


def _rows(theta: Tensor, k: int) -> Tensor:
    """Return vectors, shape (k, P), with entries between -1 and 1."""
    n = torch.arange(k * theta.numel(), device=theta.device, dtype=theta.dtype)
    return torch.cos(1.0 + n).view(k, -1)


def _at_its_start(tensor: Tensor) -> Tensor:
    """Return a tensor at the start of its memory, where what was captured begins."""
    return tensor if tensor.storage_offset() == 0 else tensor.clone()
