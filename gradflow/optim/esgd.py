"""ESGD-M: momentum, preconditioned with row norms of the Hessian that are estimated from random products."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError

#: Products of the Hessian with one vector, both cut like the parameters.
HessianProduct: TypeAlias = Callable[[list[Tensor]], Sequence[Tensor | None]]

ACCUMULATORS = ("ema", "max")


class ESGD(torch.optim.Optimizer):
    r"""Equilibrated stochastic gradient descent with quasi-hyperbolic momentum (ESGD-M).

    On some steps a probe z of random signs is multiplied by the Hessian, h = Hz. E[h²] = diag(H²), so that

    .. math::

        m &← β₁ m + (1-β₁) g \\
        D &← β₂ D + (1-β₂) h²          && \text{"ema", on a probe} \\
        D &← \max(β₂ D, h²)            && \text{"max", on a probe} \\
        S &= \sqrt{D/(1-β₂^k)} + ε     && \text{"ema"; \sqrt{D} + ε with "max"} \\
        η &= \mathtt{lr} \, (1 - ω^j) \\
        θ &← (1 - λη) θ - η \, \frac{(1-v) g + v m}{(1 - v β₁^t) \, S}

    after t gradients and k probes. A step costs a gradient, and with a probe one Hessian–vector product more.

    **What S is.** √diag(H²), the norms of the rows of H: the equilibration preconditioner of [1]_. It is not
    diag|H|, which is never larger, and is the same where H is diagonal; there one probe gives it exactly. S ≥ 0, so
    that saddles repel.

    **Two algorithms have this name.** ``accumulator="ema"`` is the first: a bias-corrected moving average of h²,
    quasi-hyperbolic momentum [2]_, and a warm-up that counts steps (j = t). ``"max"`` is the second: an
    exponentially weighted maximum, Nesterov's momentum (v = β₁), and a warm-up that counts probes (j = k).
    ``"max"`` is the more robust on mini-batches, where the average of ``"ema"`` can forget a curvature.

    **Momentum.** v = 1 is a moving average of gradients, v = β₁ is Nesterov's, v = 0 is none. The
    defaults of [2]_ are ``betas=(0.999, 0.999), v=0.7``.

    **Stability.** On a quadratic, the step is stable while the *preconditioned sharpness*, the largest eigenvalue
    of S⁻¹H, is below 2(1 + β₁) / ((1 + β₁ − 2vβ₁)η).

    **Scales.** With ε = 0 no option depends on the units of loss or parameters. ε = 1e-4 does.

    **How it fails.** A parameter with a gradient but without curvature has S = ε, and moves by ηg/ε: at the first
    step with the defaults, 100 times its gradient. Paths through a ReLU network are such.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        As for any optimiser of torch. `lr` to `weight_decay` may differ between groups.
    lr : float, default 1.0
        ≥ 0, free of units. 1e-3 to 1 is usual; 0.5 to start with for ``"max"``.
    betas : (float, float), default (0.9, 0.999)
        β₁ in [0, 1), for the gradient, and β₂ in [0, 1), for the *squared* curvature, per probe; 1 too with ``"max"``.
    v : float, optional
        In [0, 1]; the weight of momentum. Default is β₁, as it is at the time. Not with ``"max"``.
    lr_warmup : float, default 0.99
        ω in [0, 1); 0 is no warm-up.
    eps : float, default 1e-4
        ε ≥ 0, in units of curvature. With 0, 0/0 counts as 0.
    weight_decay : float, default 0.0
        λ ≥ 0, per unit of η and not preconditioned.
    update_d_every : int, default 10
        Steps from one probe to the next.
    d_warmup : int, default 20
        The first steps, every one of which has a probe.
    accumulator : {"ema", "max"}, default "ema"
    nu : float, optional
        Another name of `v`.
    seed : int, optional
        Of a generator for the probes, on the CPU. Without `seed` and `generator` they come from torch's global one.
    generator : torch.Generator, optional
        For the probes. Its state is part of :meth:`state_dict`, as is that of `seed`'s.

    Attributes
    ----------
    n : int
        Steps taken.
    u : int
        Steps since the last probe, itself included.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        For an option out of range, or not a number.

    Notes
    -----
    Gradients may be accumulated only by who supplies them to :meth:`step` himself. Distributed training isn't
    supported. Memory is m and D, two tensors per parameter, and the graph of the gradient on a probe.

    References
    ----------
    .. [1] Y. Dauphin, H. de Vries, Y. Bengio, *Equilibrated adaptive learning rates for non-convex optimization*,
       NIPS 2015, arXiv:1502.04390.
    .. [2] J. Ma, D. Yarats, *Quasi-hyperbolic momentum and Adam for deep learning*, ICLR 2019, arXiv:1810.06801.

    Examples
    --------
    >>> θ = torch.tensor([1.0, -2.0], requires_grad=True)
    >>> newton = ESGD([θ], betas=(0, 0), lr_warmup=0, eps=0, seed=0)
    >>> newton.step(lambda: 50 * θ[0] ** 2 + θ[1] ** 2)
    tensor(54.)
    >>> θ
    tensor([0., 0.], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        v: float | None = None,
        lr_warmup: float = 0.99,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        update_d_every: int = 10,
        d_warmup: int = 20,
        *,
        accumulator: str = "ema",
        nu: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if accumulator not in ACCUMULATORS:
            raise InvalidInputError(f"Expected accumulator to be 'ema' or 'max', got {accumulator!r}.")
        self.accumulator = accumulator
        self.update_d_every = check_count("update_d_every", update_d_every, least=1)
        self.d_warmup = check_count("d_warmup", d_warmup, least=1)
        self.generator = _make_generator(seed, generator)
        self.n = self.u = 0
        options = {
            "lr": lr,
            "betas": betas,
            "v": _one_of_v_and_nu(v, nu),
            "lr_warmup": lr_warmup,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, _checked(options, accumulator))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options of their own; `nu` may stand for `v`.

        They move from the first probe in which they take part.
        """
        if isinstance(param_group, dict):  # torch refuses what isn't
            param_group["v"] = _one_of_v_and_nu(param_group.get("v"), param_group.pop("nu", None))
            if param_group["v"] is None:
                param_group["v"] = self.defaults["v"]
            param_group.update(_checked({**self.defaults, **param_group}, self.accumulator))
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                self.param_groups.pop()
                raise InvalidTypeError(
                    f"Expected parameters of a real floating dtype, got {parameter.dtype}."
                )

    def should_create_graph(self) -> bool:
        """Whether the coming step measures curvature, and so needs ``backward(create_graph=True)``."""
        return self.n < self.d_warmup or self.u >= self.update_d_every

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        gradients: Sequence[Tensor | None] | None = None,
        hvp: HessianProduct | None = None,
    ) -> Any:
        """Take a step.

        Where the gradient comes from:

        - ``step()``: from the parameters' ``grad``, after
          ``loss.backward(create_graph=optimizer.should_create_graph())``.
        - ``step(closure)``: every ``grad`` is set to None and the closure is called. If any parameter has a
          ``grad`` after that, the closure called ``backward``, and these are the gradients. Otherwise the loss that it
          returned is differentiated, with a graph only where one is needed.
        - ``step(gradients=…)``: from the caller, for instance summed over chunks of data.

        Where the product with the Hessian comes from, when :meth:`should_create_graph`: from `hvp`, or else from
        the graph of the gradient. With `hvp` no graph is needed. After the step no ``grad`` has a graph any more.

        A parameter without a gradient is left as it is. Where a gradient has no graph, but another one has, the loss is
        taken to be affine in that parameter.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the loss; see above.
        gradients : sequence of Tensor or None, optional
            One per parameter, in the order of the groups, in its shape and dtype and on its device; None where
            a parameter is to be left out.
        hvp : callable, optional
            Takes a list of vectors, cut and ordered like `gradients` (zeros for what is left out), and returns
            the list of their products with the full Hessian, cut the same way; None stands for zeros. Called at most
            once, and only when :meth:`should_create_graph`.

        Returns
        -------
        Tensor or None
            What the closure returned, without its graph.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If there is no gradient, it is sparse or doesn't fit its parameter, or the curvature can't be measured.
            Parameters and state are then as before.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        measures = self.should_create_graph()
        loss = None
        if closure is not None:
            if gradients is not None:
                raise InvalidInputError("Expected a closure or gradients, got both. Leave one out.")
            loss, gradients = _evaluate(closure, params, create_graph=measures and hvp is None)
        elif gradients is None:
            gradients = [p.grad for p in params]
        _check_like("gradients", gradients, params)
        if all(g is None for g in gradients):
            raise InvalidInputError("Expected a gradient, got None for every parameter. Call backward first.")

        products = self._probe(params, gradients, hvp) if measures else [None] * len(params)
        _release_graphs(params)
        entries = zip(gradients, products, strict=True)
        for group in self.param_groups:
            for p in group["params"]:
                g, h = next(entries)
                if g is not None:
                    self._update(p, g, h, group)
        self.n += 1
        self.u = 1 if measures else self.u + 1
        return loss

    def preconditioner(self) -> list[Tensor | None]:
        """Return S as the last step divided by it, bias-corrected and with ε.

        Returns
        -------
        list of Tensor or None
            One per parameter, in the order of the groups and of its shape; None where no curvature has been measured.
        """
        return [self._S(p, group["eps"]) for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return what torch's optimisers give, and ``"esgd"``: counters, schedule and the generator's state."""
        own: dict[str, Any] = {
            "accumulator": self.accumulator,
            "update_d_every": self.update_d_every,
            "d_warmup": self.d_warmup,
            "n": self.n,
            "u": self.u,
        }
        if self.generator is not None:
            own |= {"device": str(self.generator.device), "generator": self.generator.get_state()}
        return {**super().state_dict(), "esgd": own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state. It wins over the options given to the constructor.

        Raises
        ------
        InvalidInputError
            If it isn't a state of ESGD with this accumulator.
        """
        own = state_dict.get("esgd")
        if own is None:
            raise InvalidInputError(
                "Expected a state of ESGD, got one without 'esgd'. Save it with state_dict()."
            )
        if own["accumulator"] != self.accumulator:
            raise InvalidInputError(
                f"Expected a state with accumulator={self.accumulator!r}, got {own['accumulator']!r}. "
                "Construct the optimiser with the accumulator that it was saved with."
            )
        super().load_state_dict(dict(state_dict))
        for name in ("update_d_every", "d_warmup", "n", "u"):
            setattr(self, name, own[name])
        if "generator" in own:
            if self.generator is None or str(self.generator.device) != own["device"]:
                self.generator = torch.Generator(own["device"])
            self.generator.set_state(own["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        names = ("accumulator", "update_d_every", "d_warmup", "n", "u", "generator")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def _probe(
        self, params: list[Tensor], gradients: Sequence[Tensor | None], hvp: HessianProduct | None
    ) -> list[Tensor | None]:
        """Multiply random signs by the Hessian of all parameters that have a gradient."""
        if hvp is None and not any(g is not None and g.requires_grad for g in gradients):
            raise InvalidInputError(
                "Expected gradients with a graph on a step that measures curvature, got none. Call "
                "loss.backward(create_graph=optimizer.should_create_graph()), or give step() hvp. (A loss "
                "that is affine in every parameter has no curvature to measure.)"
            )
        z = [
            torch.zeros_like(p) if g is None else self._signs(p)
            for p, g in zip(params, gradients, strict=True)
        ]
        if hvp is None:
            live = [
                (g, each) for g, each in zip(gradients, z, strict=True) if g is not None and g.requires_grad
            ]
            outputs, weights = zip(*live, strict=True)
            products: Sequence[Tensor | None] = _differentiate(outputs, params, weights)
        else:
            with torch.enable_grad():
                products = hvp(z)
            _check_like("hvp's products", products, params)
        return [
            torch.zeros_like(p) if h is None else h.detach() for h, p in zip(products, params, strict=True)
        ]

    def _signs(self, p: Tensor) -> Tensor:
        device = p.device if self.generator is None else self.generator.device
        bits = torch.randint(0, 2, p.shape, generator=self.generator, device=device, dtype=p.dtype)
        return bits.to(p.device).mul_(2).sub_(1)

    def _update(self, p: Tensor, g: Tensor, h: Tensor | None, group: dict[str, Any]) -> None:
        β1, β2 = group["betas"]
        v = β1 if group["v"] is None else group["v"]
        state = self.state[p]
        if (
            not state
        ):  # a, b and p are the running products β₁ᵗ, β₂ᵏ and ωʲ; the maximum has no bias to correct
            state |= {"m": torch.zeros_like(p), "a": 1.0, "b": float(self.accumulator == "ema"), "p": 1.0}
        state["m"].mul_(β1).add_(g, alpha=1 - β1)
        state["a"] *= β1
        if h is not None:
            self._accumulate(state, h, β2)
        if h is not None or self.accumulator == "ema":
            state["p"] *= group["lr_warmup"]
        S = self._S(p, group["eps"])
        if S is None:  # it came between two probes, and its scale isn't known yet
            return
        direction = g.lerp(state["m"], v)
        ratio = direction / S
        if group["eps"] == 0:
            ratio.masked_fill_((direction == 0) & (S == 0), 0)
        η = group["lr"] * (1 - state["p"])
        p.mul_(1 - group["weight_decay"] * η).sub_(ratio, alpha=η / (1 - v * state["a"]))

    def _accumulate(self, state: dict[str, Any], h: Tensor, β2: float) -> None:
        D = state.setdefault("D", torch.zeros_like(h)).mul_(β2)
        if self.accumulator == "ema":
            D.add_(h.square(), alpha=1 - β2)
        else:
            torch.maximum(D, h.square(), out=D)
        state["b"] *= β2

    def _S(self, p: Tensor, ε: float) -> Tensor | None:
        """Return S of one parameter, or None before its first probe."""
        state = self.state.get(p, {})
        if "D" not in state:
            return None
        S: Tensor = (state["D"] / (1 - state["b"])).sqrt_().add_(ε)
        return S


def _evaluate(
    closure: Callable[[], Any], params: list[Tensor], *, create_graph: bool
) -> tuple[Any, list[Tensor | None]]:
    """Call a closure; return its loss without graph, and the gradient that it left or that the loss has."""
    for p in params:
        p.grad = None
    with torch.enable_grad():
        loss = closure()
    gradients = [p.grad for p in params]
    if all(g is None for g in gradients):
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InvalidTypeError(
                "Expected a closure that calls backward, or that returns the loss as a tensor of one element with a "
                f"graph, got {loss!r} and no gradient. Don't detach, and don't leave torch (float(), .item())."
            )
        gradients = _differentiate((loss,), params, create_graph=create_graph)
    return loss.detach() if isinstance(loss, Tensor) else loss, gradients


def _differentiate(
    outputs: Sequence[Tensor],
    params: list[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Return the derivatives of Σ⟨output, weight⟩; None where it doesn't depend on a parameter."""
    leaves = [p for p in params if p.requires_grad]
    parts = iter(torch.autograd.grad(outputs, leaves, weights, create_graph=create_graph, allow_unused=True))
    return [next(parts) if p.requires_grad else None for p in params]


def _release_graphs(params: list[Tensor]) -> None:
    """Break the cycle parameter → gradient → graph → parameter, which Python's collector can't see."""
    for p in params:
        if p.grad is not None and p.grad.requires_grad:
            p.grad = p.grad.detach()


def _check_like(name: str, tensors: Sequence[Tensor | None], params: list[Tensor]) -> None:
    """Refuse a list that isn't cut like the parameters."""
    if not isinstance(tensors, (list, tuple)):
        raise InvalidTypeError(f"Expected {name} as a list of tensors, got {type(tensors).__name__}.")
    if len(tensors) != len(params):
        raise InvalidInputError(f"Expected {name} for {len(params)} parameters, got {len(tensors)}.")
    for i, (each, p) in enumerate(zip(tensors, params, strict=True)):
        if each is None:
            continue
        if not isinstance(each, Tensor):
            raise InvalidTypeError(f"Expected {name} as tensors, got {type(each).__name__} at {i}.")
        if each.layout != torch.strided:
            raise InvalidInputError(
                f"Expected dense {name}, got {each.layout} at {i}. Use sparse=False, or to_dense()."
            )
        got, expected = ((tuple(t.shape), t.dtype, str(t.device)) for t in (each, p))
        if got != expected:
            raise InvalidInputError(
                f"Expected {name} of its parameter's shape, dtype and device {expected} at {i}, got {got}."
            )


def _one_of_v_and_nu(v: float | None, nu: float | None) -> float | None:
    if v is not None and nu is not None:
        raise InvalidInputError(f"Expected v or nu, which are one option, got v={v} and nu={nu}.")
    return nu if v is None else v


def _checked(options: Mapping[str, Any], accumulator: str) -> dict[str, Any]:
    """Return the options of a group as floats, or refuse them."""
    betas, v = options["betas"], options["v"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise InvalidTypeError(f"Expected betas as a pair of numbers (β₁, β₂), got {betas!r}.")
    if accumulator == "max" and v is not None:
        raise InvalidInputError(
            f"Expected no v with accumulator='max', whose momentum is Nesterov's (v = β₁), got {v}. Leave it out."
        )
    β1 = check_number("β₁ of betas", betas[0], least=0, below=1)
    below, most = (1.0, math.inf) if accumulator == "ema" else (math.inf, 1.0)
    β2 = check_number("β₂ of betas", betas[1], least=0, below=below, most=most)
    return {
        "lr": check_number("lr", options["lr"], least=0),
        "betas": (β1, β2),
        "v": None if v is None else check_number("v", v, least=0, most=1),
        "lr_warmup": check_number("lr_warmup", options["lr_warmup"], least=0, below=1),
        "eps": check_number("eps", options["eps"], least=0),
        "weight_decay": check_number("weight_decay", options["weight_decay"], least=0),
    }


def _make_generator(seed: object, generator: object) -> torch.Generator | None:
    if seed is not None and generator is not None:
        raise InvalidInputError("Expected seed or generator, got both. Leave one out.")
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
            raise InvalidTypeError(f"Expected seed to be an int, got {type(seed).__name__} {seed!r}.")
        return torch.Generator().manual_seed(int(seed))
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    raise InvalidTypeError(f"Expected generator as a torch.Generator, got {type(generator).__name__}.")
