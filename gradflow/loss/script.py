"""A list of torch's operations as a function that TorchScript's interpreter runs."""

from __future__ import annotations

from typing import Any

import torch

# The numbers by which TorchScript knows them.
_MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}


class ScriptBuilder:
    """Builds the graph of a function, one operation after another.

    ``torch.jit.trace`` is deprecated, and can't take some arguments of operations (lists of bool); the interpreter
    itself is what runs under both.

    Attributes
    ----------
    graph : torch._C.Graph
    """

    def __init__(self) -> None:
        self.graph = torch._C.Graph()

    def tensor(self) -> Any:
        """Add an input, a tensor, and return its value in the graph."""
        value = self.graph.addInput("")
        value.setType(torch._C.TensorType.get())
        return value

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add a call of an operation, and return its result: a value in the graph, or a list of them.

        Parameters
        ----------
        function : torch._ops.OpOverload
        args, kwargs
            Values of the graph, numbers and the like, and lists.
        """
        schema = function._schema
        given = dict(zip((each.name for each in schema.arguments), args, strict=False)) | kwargs
        inputs = [
            self._value(given.get(each.name, each.default_value), each.type) for each in schema.arguments
        ]
        node = self._insert(schema.name, inputs, len(schema.returns))
        outputs = list(node.outputs())
        for output, returned in zip(outputs, schema.returns, strict=True):
            output.setType(returned.type)
        return outputs[0] if len(outputs) == 1 else outputs

    def unpack(self, value: Any, n: int) -> list[Any]:
        """Take a list of n tensors apart."""
        return list(self._insert("prim::ListUnpack", [value], n).outputs())

    def function(self, outputs: list[Any]) -> Any:
        """Return the function of the inputs that gives a tuple of outputs."""
        self.graph.registerOutput(self._list_like("prim::TupleConstruct", outputs, None))
        self.graph.lint()
        return torch._C._create_function_from_graph("tape", self.graph)

    def _value(self, given: Any, kind: Any) -> Any:
        """Return what an operation is given as a value of the graph, of a type where it may be of several."""
        if isinstance(given, torch._C.Value):
            return given
        if isinstance(given, list | tuple):
            inner = kind.getElementType()
            inner = inner.getElementType() if isinstance(inner, torch._C.ListType) else inner
            elements = [self._value(each, inner) for each in given]
            return self._list_like("prim::ListConstruct", elements, torch._C.ListType(inner))
        if isinstance(given, int) and not isinstance(given, bool) and kind.kind() == "FloatType":
            given = float(given)
        if isinstance(given, torch.memory_format):
            given = _MEMORY_FORMATS[given]
        return self.graph.insertConstant(given)  # type: ignore[attr-defined]

    def _list_like(self, what: str, elements: list[Any], kind: Any) -> Any:
        output = self._insert(what, elements, 1).output()
        output.setType(torch._C.TupleType([each.type() for each in elements]) if kind is None else kind)
        return output

    def _insert(self, name: str, inputs: list[Any], n_outputs: int) -> Any:
        node = self.graph.create(name, inputs, n_outputs)
        self.graph.insertNode(node)
        return node
