"""ELRA: one step length for all parameters, from the angle between consecutive gradients.

This is the variant P2M ("parabola to minimum"). Arguments and methods are those of the authors' optimiser, in the same
order, so that a training script changes its import and nothing else. For this reason there are arguments without an
effect: `dummy`, `boost`, and `mode`, which has one value that is implemented. They stay as long as this promise does.
Methods that scripts don't need are left out: a step that evaluates the model itself (``step_allinone``), and printing,
copying and debugging (``copy_model``, ``vec_stat``, ``print_model_stat``, ``extra_param``, ``set_lgs_device``).
"""

from __future__ import annotations

import enum
import math
import numbers
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.optim.elra.boost import Boost
from gradflow.optim.elra.control import Control
from gradflow.optim.elra.descent import Descent, Group, Track
from gradflow.optim.elra.flat import FlatParameters
from gradflow.optim.elra.former import with_present_names
from gradflow.optim.elra.settings import Settings, reading_of_decay

_OWN = ("_control", "_descent", "_index", "_boost", "_model", "_writes_read")


class Mode(enum.Enum):
    """The papers' two variants; only P2M is implemented.

    C2M is a member so that a script that asks for it is told so, instead of failing with an AttributeError.
    """

    c2min = "c2min"
    p2min = "p2min"


class ElraOptimizer(torch.optim.Optimizer):
    """Exponential learning rate adaption, variant P2M (Kleinsorge, Kupper, Fauck & Rothe, arXiv:2309.06274).

    All parameters are one vector θ. After a step of length α along −ĝ, the new gradient g gives the slope at its far
    end; the parabola through both slopes has its minimum at

        α ← α / (1 − ⟨g, ĝ⟩/‖ĝ‖²),

    where the old slope ĝ and the new one would be orthogonal. This is ‖Δθ‖²/⟨Δθ, Δg⟩, the long step of Barzilai &
    Borwein (1988). Where the parabola has no minimum or is too flat, α grows by a factor that itself grows. Where
    slopes oppose each other (s = ⟨g, ĝ⟩/‖ĝ‖² < 0), α|s| ≤ 0.1. A loss far above the running mean takes the step back:
    θ returns to the last good point and goes a shorter way along its old slope. This shows at the next call only: the
    last θ is not always the best.

    **Two modes.** *Noise-free*: the step length is α; for a loss that is a function of θ. *Noisy*: the step length
    η follows a schedule, steered every 100 steps by the cosines; if the mean loss stagnates, a step averages more
    micro-batches. `classes` ≤ 1, the default, is noise-free.

    **Invariance.** Rotations of θ, and how it is cut into tensors, don't matter. The scales of loss and θ do: the
    bounds of α, and η, are absolute.

    **lr** is the length of the first step and forgotten after it. The entries ``"lr"`` of ``param_groups`` are for
    schedulers of torch, which may be stepped and have no effect.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        As for any optimiser of torch. Dense, real; of several dtypes and devices, if need be. A group's
        ``weight_decay`` is on or off (0); its strength is that of `weight_decay`.
    model : torch.nn.Module, optional
        For :meth:`get_boost_model`, if it is not given there.
    batch_size : int, default 8
        Samples in a micro-batch. Statistics are over about 76,800 samples.
    classes : int, default 0
        Of a classification; from 2 on the mode is noisy, and a loss above 1.1 ln(classes) and above 1.1 times the
        first is refused.
    lr : float, default 1e-5
        First step length, in units of θ²/loss.
    mode : Mode, default Mode.p2min
    dummy : object, optional
        Ignored. It keeps the place of an argument in calls by position.
    momentum : float, optional
        In [0, 1): weight of the past in a moving average of gradients. It harms in noise-free mode.
    weight_decay : float, default 0.0
        Strength in [0, 0.1); above 1/2 it is read as 1 − strength. The decay's norm is the strength times 1 % of the
        mean gradient's. Once both losses are set, see :meth:`set_valid_loss`, their ratio takes its place.
    warmup : float, default 1
        Steps over which η grows linearly; only in noisy mode.
    noise_free : bool, optional
        The mode. Default: by `classes`.

    Attributes
    ----------
    control : Control
        Step lengths, statistics and counters, for reading only.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        For an argument that can't be used.

    Notes
    -----
    Memory is ĝ and the last good θ, and one vector each for momentum, for micro-batches (while they are collected),
    and for parameters in half precision. BatchNorm's buffers aren't taken back with a step.

    Examples
    --------
    >>> θ = torch.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = ElraOptimizer([θ], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (θ**2).sum()
    ...     loss.backward()
    ...     optimizer.step(loss.item())
    >>> θ
    tensor([0., 0.], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        model: nn.Module | None = None,
        batch_size: int = 8,
        classes: int = 0,
        lr: float = 1e-5,
        mode: Mode = Mode.p2min,
        dummy: object = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        warmup: float = 1,
        *,
        noise_free: bool | None = None,
    ) -> None:
        if not isinstance(mode, Mode):
            raise InvalidTypeError(f"Expected mode to be a Mode, got {type(mode).__name__} {mode!r}.")
        if mode is not Mode.p2min:
            raise InvalidInputError(f"Expected Mode.p2min, got {mode}. The variant C2M is not implemented.")
        settings = Settings(lr, batch_size, classes, momentum or 0.0, weight_decay, warmup, noise_free)
        self._model = model
        self._control = Control.new(settings)
        self._descent: Descent | None = None
        self._index: list[int] = []
        self._boost: Boost | None = None
        self._writes_read = 0
        super().__init__(_as_list(params), {"lr": settings.lr, "weight_decay": settings.weight_decay})

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs."""
        own = {name: self.__dict__[name] for name in _OWN}
        return {**super().__getstate__(), **own}

    @property
    def control(self) -> Control:
        """Step lengths, statistics and counters."""
        return self._control

    # Steps

    @torch.no_grad()
    def step(self, loss: float | Tensor, scale: float | None = None) -> None:  # type: ignore[override]
        """Take a step with the parameters' gradients, or take the last one back.

        Parameters
        ----------
        loss : float or Tensor of one element
            At the parameters as they are. Where it isn't finite, no gradient is needed.
        scale : float, optional
            Factor for the gradients.

        Raises
        ------
        NonFiniteLossError
            On the first call, if loss or gradient isn't finite.
        InvalidInputError, InvalidTypeError
            Where there is no gradient, or a sparse one.
        """
        f = _as_number(loss)
        if not math.isfinite(f):
            self._advance(f, None)
            return
        g = self._flat.gradient()
        if scale is not None:
            check_number("scale", scale, above=0)
            g *= scale
        self._advance(f, g)

    @torch.no_grad()
    def step_noscale(self, loss: float | Tensor, grad: Tensor | None = None) -> None:
        """Take a step with a given gradient, shape (n,) in the order of :meth:`get_gradient`; else as :meth:`step`."""
        g = self._flat.gradient() if grad is None else self._flat.check("grad", grad)
        f = _as_number(loss)
        self._advance(f, g if math.isfinite(f) else None)

    @torch.no_grad()
    def step_retrace(self, loss: float | Tensor) -> None:
        """Take the last step back, whatever its loss; no gradient is needed."""
        f = _as_number(loss)
        if self._control.n_calls == 0:
            raise InvalidInputError(
                "Expected a step before step_retrace, got none: there is nothing to take back."
            )
        self._advance(f, None)

    def check_next_step(self) -> tuple[bool, int]:
        """Return whether the next call moves the parameters, and how many micro-batches make a step."""
        c = self._control.micro_batches
        return self._path.group.n_batches + 1 >= c, c

    def _advance(self, f: float, g: Tensor | None) -> None:
        path = self._path
        decaying = [bool(self.param_groups[index]["weight_decay"]) for index in self._index]
        accepted = path.advance(f, g, decaying)
        if accepted is not None and self._boost is not None:
            self._boost.add(*accepted)

    @property
    def _path(self) -> Descent:
        """The descent in the parameters that required a gradient when this was first asked for."""
        if self._descent is None:
            numbered = [
                (index, p)
                for index, group in enumerate(self.param_groups)
                for p in group["params"]
                if p.requires_grad
            ]
            self._index = [index for index, _ in numbered]
            self._descent = Descent(self._control, FlatParameters([p for _, p in numbered]))
        return self._descent

    @property
    def _flat(self) -> FlatParameters:
        return self._path.flat

    def _restart(self, settings: Settings) -> None:
        """Go back to before the first call, but keep the losses that the user has set."""
        train, valid = self._control.train_loss, self._control.valid_loss
        self._control = Control.new(settings)
        self._control.train_loss, self._control.valid_loss = train, valid
        if self._descent is not None:
            self._descent = Descent(self._control, self._descent.flat)

    # Settings and losses from elsewhere

    def set_train_loss(self, loss: float | Tensor, boost: object = None) -> None:
        """Set the training loss, for example once per epoch; `boost` is ignored and keeps its place in calls."""
        self._control.train_loss = _as_number(loss)

    def set_valid_loss(self, loss: float | Tensor, boost: object = None) -> None:
        """Set the validation loss: the further above the training loss, the stronger the weight decay.

        Only with a `weight_decay` that isn't 0. `boost` is ignored.
        """
        self._control.valid_loss = _as_number(loss)

    def set_classes(self, classes: int) -> None:
        """Set the number of classes, and with it the mode, before the first step."""
        self._refuse_after_start("classes")
        self._restart(replace(self._control.settings, classes=classes))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters before the first step; averaging, if it is on, ends."""
        self._refuse_after_start("parameters")
        if not isinstance(param_group, dict):
            raise InvalidTypeError(f"Expected param_group to be a dict, got {type(param_group).__name__}.")
        group = dict(param_group)
        if "weight_decay" in group:
            group["weight_decay"] = reading_of_decay(group["weight_decay"])
            if group["weight_decay"] and not self._control.settings.weight_decay:
                raise InvalidInputError(
                    "Expected a group's weight_decay of 0 if the optimiser's is 0, got "
                    f"{group['weight_decay']:g}. A group switches decay on or off; set the strength for all."
                )
        super().add_param_group(group)
        self._descent = self._boost = None

    def _refuse_after_start(self, what: str) -> None:
        if self._control.n_calls > 0:
            raise InvalidInputError(
                f"Expected {what} to be set before the first step, got them after {self._control.n_calls} calls. "
                "Make a new optimiser."
            )

    # Vectors

    def get_gradient(self) -> Tensor:
        """Return the gradient in a new tensor, shape (n,)."""
        return self._flat.gradient()

    def get_param(self, only_new: bool = False, device: torch.device | str | None = None) -> Tensor | None:
        """Return the parameters in a new tensor, shape (n,).

        Parameters
        ----------
        only_new : bool, default False
            Return None if no call has moved them since they were last returned.
        device : torch.device or str, optional
        """
        if only_new and self._flat.writes == self._writes_read:
            return None
        self._writes_read = self._flat.writes
        return self._flat.read().to(device)

    @torch.no_grad()
    def set_param(self, x: Tensor) -> None:
        """Jump to x, shape (n,), and start anew there: the next call counts as the first."""
        self._flat.write(self._flat.check("x", x))
        self._restart(self._control.settings)

    # Averages

    def get_boost_model(
        self, enable: bool, model: nn.Module | None = None, device: torch.device | str | None = None
    ) -> tuple[int, float, nn.Module | None]:
        """Return a model with the average of accepted parameters; the first call starts averaging.

        The average is over the last complete block of 240 accepted points since the last call that gave a model, or
        over all of them if no block is complete. The path of the optimiser doesn't depend on it.

        Parameters
        ----------
        enable : bool
            False: stop averaging.
        model : torch.nn.Module, optional
            Copied on the first call; ignored on others. Default: the constructor's.
        device : torch.device or str, optional
            Where the copy is to be.

        Returns
        -------
        steps : int
            Points averaged; 0 if there are fewer than 4.
        mean_loss : float
            Mean of their losses; 0.0 without any.
        model : torch.nn.Module or None
            The same object at every call. Its buffers are those of the first call.
        """
        if not enable:
            self._boost = None
            return 0, 0.0, None
        if self._boost is not None:
            return self._boost.read(device)
        source = self._model if model is None else model
        if source is None:
            raise InvalidInputError(
                "Expected a model to average, got none. Call get_boost_model(True, model)."
            )
        self._boost = Boost(source, self._flat.parameters)
        return 0, 0.0, None

    def get_boost_model_prev(self) -> nn.Module | None:
        """Return the model that was last given."""
        return self._boost.model if self._boost is not None and self._boost.given else None

    def get_boost_future(self, t: float) -> Tensor:
        """Extrapolate the last two averages: (1 + t)·last − t·last but one, shape (n,)."""
        check_number("t", t)
        if self._boost is None:
            raise InvalidInputError(
                "Expected averaging to be on, got none. Call get_boost_model(True, model)."
            )
        return self._boost.future(t)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on bit for bit; averages aren't part of it."""
        path = self._path
        own = {
            "control": asdict(self._control),
            "track": None if path.track is None else dict(vars(path.track)),
            "group": dict(vars(path.group)),
            "theta": path.flat.theta,
        }
        return {**super().state_dict(), "elra": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; settings are taken over too."""
        if "elra" not in state_dict:
            raise InvalidInputError("Expected the state of an ElraOptimizer, got one without 'elra'.")
        own, flat = with_present_names(state_dict["elra"]), self._flat

        def copied(vectors: dict[str, Any]) -> dict[str, Any]:
            return {k: flat.check(k, v) if isinstance(v, Tensor) else v for k, v in vectors.items()}

        track, group = own["track"] and Track(**copied(own["track"])), Group(**copied(own["group"]))
        theta = copied({"theta": own["theta"]})["theta"]
        super().load_state_dict(state_dict)
        self._control = Control.restored(own["control"])
        self._descent = Descent(self._control, flat)
        self._descent.track, self._descent.group, flat.theta = track, group, theta


def _as_list(params: Iterable[Any]) -> list[Any]:
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise InvalidTypeError(f"Expected params to be an iterable of Tensors, got {type(params).__name__}.")
    listed = list(params)
    if not listed:
        raise InvalidInputError("Expected at least one parameter, got none.")
    return listed


def _as_number(loss: object) -> float:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return float(loss.detach())
    if isinstance(loss, numbers.Real):
        return float(loss)
    raise InvalidTypeError(
        f"Expected the loss as a number, got {type(loss).__name__}. Call step(loss.item()) after loss.backward()."
    )
