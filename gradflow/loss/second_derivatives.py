"""Whether the second and third derivatives of a loss can be had by differentiating its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradflow.errors import InexactDerivativeError

# In names of operations.
_NORMS = ("BatchNorm", "LayerNorm", "RmsNorm", "RMSNorm")
_NEVER_MIND = (
    'Or pass hvp="difference", for products by differences of gradients. Losses, gradients and the methods that take '
    "nothing else go on working."
)


class SecondDerivatives:
    """What is known of a loss's products with its Hessian, and with third derivatives.

    Attributes
    ----------
    wrong : str or None
        Why products with the Hessian would be wrong; None as far as is known.
    wrong_third : str or None
        The same for third derivatives.
    third_is_checked : bool
        Third derivatives have been set against differences, or aren't to be.
    functions : list of str
        The subclasses of ``torch.autograd.Function`` that were seen.
    normalizes : bool
        The gradient comes from a norm layer of torch, whose third derivatives may be wrong.
    """

    def __init__(self) -> None:
        self.wrong: str | None = None
        self.wrong_third: str | None = None
        self.third_is_checked = False
        self.functions: list[str] = []
        self.normalizes = False
        self._seen = self._seen_third = False

    def look(self, value: Tensor, gradient: Sequence[Tensor]) -> None:
        """Search the graph of a gradient, once, for operations that can't be differentiated again.

        ``torch.autograd.grad`` passes over such operations without a word where they have no path to the parameters,
        as if their derivative were zero.
        """
        if not self._seen:
            self._seen = True
            functions = custom_functions(value)
            self.functions = sorted(functions)
            names = {node.name() for node in graph_nodes(gradient)}
            self.normalizes = any(norm in name for name in names for norm in _NORMS)
            self.wrong = self.wrong or _undifferentiable(names, functions)
        self.demand()

    def demand(self) -> None:
        """Raise what is known to be wrong."""
        if self.wrong is not None:
            raise InexactDerivativeError(self.wrong)

    def look_third(self, product: Tensor) -> None:
        """Search the graph of a product H·u, once, as :meth:`look` does with that of a gradient."""
        if not self._seen_third:
            self._seen_third = True
            if "torch::autograd::Error" in {node.name() for node in graph_nodes([product])}:
                self.wrong_third = (
                    "There are no third derivatives: H·u comes from an operation whose second derivative can't be "
                    "differentiated (once_differentiable). Use an implementation in plain torch. Gradients and H·v "
                    "go on working."
                )
        self.demand_third()

    def demand_third(self) -> None:
        """Raise what is known to be wrong with third derivatives."""
        if self.wrong_third is not None:
            raise InexactDerivativeError(self.wrong_third)


def _undifferentiable(names: set[str], functions: dict[str, Any]) -> str | None:
    if "torch::autograd::Error" in names:
        once = sorted(name for name, made in functions.items() if hasattr(made.backward, "__wrapped__"))
        return (
            "There are no products with the Hessian: the gradient comes from an operation whose backward can't be "
            f"differentiated (once_differentiable){': ' + ', '.join(once) if once else ''}. Use an implementation in "
            f"plain torch. {_NEVER_MIND}"
        )
    if "WeightNormInterfaceBackward0" in names:
        return (
            "There are no products with the Hessian: torch's own second derivative of torch._weight_norm is wrong. "
            "Write it out, v * (g / torch.norm_except_dim(v, 2, dim)), or make the loss as LossFunction(dataset, "
            f"criterion, net), which does so for weight_norm in the net. {_NEVER_MIND}"
        )
    return None


def custom_functions(value: Tensor) -> dict[str, Any]:
    """Return the subclasses of ``torch.autograd.Function`` in the graph of a value, by name."""
    found = [node._forward_cls for node in graph_nodes([value]) if isinstance(node, BackwardCFunction)]  # type: ignore[attr-defined]
    return {f"{made.__module__}.{made.__qualname__}": made for made in found}


def graph_nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Return every node of the graph that leads to some tensors."""
    waiting = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
