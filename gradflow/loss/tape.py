"""A computation as a flat list of torch's operations, recorded once and replayed without autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gradflow.loss.script import ScriptBuilder

aten = torch.ops.aten


class UncapturableError(Exception):
    """A computation isn't a fixed list of operations."""


class Slot(NamedTuple):
    """A tensor on the tape, by its number."""

    number: int


class Operation(NamedTuple):
    """A call of one of torch's operations; in arguments and result a slot stands for each tensor."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def reads(self) -> set[int]:
        """The slots of the arguments."""
        return slots_of((self.args, self.kwargs))

    @property
    def makes(self) -> set[int]:
        """The slots of the result."""
        return slots_of(self.result)

    @property
    def writes(self) -> set[int]:
        """The slots of the arguments that are written to."""
        arguments = self.function._schema.arguments
        named = dict(zip((each.name for each in arguments), self.args, strict=False)) | self.kwargs
        written = [
            each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write
        ]
        return slots_of([named.get(name) for name in written])


class Tape:
    """A list of operations, from numbered inputs to numbered outputs.

    Attributes
    ----------
    inputs, outputs : list of int
        Slots that are given, and that are returned.
    operations : list of Operation
    constants : dict of int to Tensor
        What the operations read beside the inputs, by slot: the tensors themselves, not copies.
    values : dict of int to Tensor
        Every tensor as it was recorded.
    """

    def __init__(self) -> None:
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.operations: list[Operation] = []
        self.constants: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def given(self) -> list[Tensor]:
        """Return inputs and constants."""
        return [self.values[slot] for slot in (*self.inputs, *self.constants)]

    def computed(self) -> list[Tensor]:
        """Return what the operations have given."""
        return [self.values[slot] for each in self.operations for slot in each.makes]

    def memory(self, slots: set[int]) -> set[int]:
        """Return where some slots were in memory when they were recorded."""
        return {memory_of(self.values[slot]) for slot in slots}

    def part(self, inputs: list[int], own: list[int], saved: Sequence[int] = ()) -> Tape:
        """Return what it takes to compute some slots from others.

        Parameters
        ----------
        inputs : list of int
        own : list of int
            Slots to be returned as tensors that share memory with nothing else, so that they may be written to.
        saved : sequence of int
            Slots to be returned as they are.
        """
        part = Tape()
        part.inputs, part.values = inputs, self.values
        given = set(inputs)
        needed = {*own, *saved} - given
        for operation in reversed(self.operations):
            is_seen = operation.writes and self.memory(operation.writes) & self.memory(needed)
            if needed & operation.makes or is_seen:
                needed = (needed - operation.makes) | (operation.reads - given)
                part.operations.append(operation)
        part.operations.reverse()
        if not needed <= set(self.constants):
            raise UncapturableError("a part needs more than it is given")
        part.constants = {slot: self.constants[slot] for slot in sorted(needed)}
        shared = self.memory({*inputs, *part.constants, *saved})
        part.outputs = [part._unshared(slot, shared) for slot in own] + [*saved]
        return part

    def _unshared(self, slot: int, shared: set[int]) -> int:
        """Return a slot, or that of a copy if its memory is shared; add its memory to what is shared."""
        if memory_of(self.values[slot]) in shared:
            copy = len(self.values)
            self.values[copy] = self.values[slot].clone()
            self.operations.append(Operation(aten.clone.default, (Slot(slot),), {}, Slot(copy)))
            return copy
        shared.add(memory_of(self.values[slot]))
        return slot

    def compiled(self) -> Callable[..., tuple[Tensor, ...]]:
        """Return a function of the inputs that runs the operations in TorchScript's interpreter, without Python."""
        builder = ScriptBuilder()
        values: dict[int, Any] = {slot: builder.tensor() for slot in (*self.inputs, *self.constants)}

        def read(leaf: Any) -> Any:
            return values[leaf.number] if isinstance(leaf, Slot) else leaf

        for operation in self.operations:
            result = operation.result
            made = builder.call(
                operation.function, map_slots(read, operation.args), map_slots(read, operation.kwargs)
            )
            if isinstance(result, list):
                made = builder.unpack(made, len(result))
            for slot, value in zip(leaves_of(result), leaves_of(made), strict=True):
                if isinstance(slot, Slot):
                    values[slot.number] = value
        script = builder.function([values[slot] for slot in self.outputs])
        constants = tuple(self.constants.values())

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            # Unoptimised: the same kernels as always.
            with torch.no_grad(), torch.jit.optimized_execution(False):
                return script(*inputs, *constants)

        return run


def memory_of(tensor: Tensor) -> int:
    """Return where a tensor's memory begins, which it shares with its views."""
    return tensor.untyped_storage().data_ptr()


def _is_leaf(node: Any) -> bool:
    return isinstance(node, Slot)


def map_slots(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to slots, tensors and all else in nested lists."""
    return tree_map(function, tree, is_leaf=_is_leaf)


def leaves_of(tree: Any) -> list[Any]:
    """Return slots, tensors and all else in nested lists."""
    return tree_leaves(tree, is_leaf=_is_leaf)


def slots_of(tree: Any) -> set[int]:
    """Return the numbers of the slots in nested lists."""
    return {leaf.number for leaf in leaves_of(tree) if isinstance(leaf, Slot)}
