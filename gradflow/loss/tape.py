"""A computation as a flat list of torch's operations, recorded once and replayed without autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils._python_dispatch import TorchDispatchMode

from gradflow.loss.script import ScriptBuilder

aten = torch.ops.aten

# Operations that give what they are given.
_SAME = {aten.detach.default, aten.alias.default}
# Operations whose results depend on shapes alone.
_FILLS = {
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
    aten.ones.default,
    aten.zeros.default,
    aten.full.default,
    aten.scalar_tensor.default,
}
_REFUSED = {
    torch.Tag.data_dependent_output: "turns numbers into Python's",
    torch.Tag.dynamic_output_shape: "gives a shape that depends on numbers",
    torch.Tag.nondeterministic_seeded: "draws random numbers",
}


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
            made = _slots(operation.result)
            if needed & made:
                needed = (needed - made) | (_slots((operation.args, operation.kwargs)) - given)
                part.operations.append(operation)
        part.operations.reverse()
        if not needed <= set(self.constants):
            raise UncapturableError("a part needs more than it is given")
        part.constants = {slot: self.constants[slot] for slot in sorted(needed)}
        shared = {_storage(self.values[slot]) for slot in (*inputs, *part.constants, *saved)}
        part.outputs = [part._unshared(slot, shared) for slot in own] + [*saved]
        return part

    def _unshared(self, slot: int, shared: set[int]) -> int:
        """Return a slot, or that of a copy if its memory is shared; add its memory to what is shared."""
        if _storage(self.values[slot]) in shared:
            copy = len(self.values)
            self.values[copy] = self.values[slot].clone()
            self.operations.append(Operation(aten.clone.default, (Slot(slot),), {}, Slot(copy)))
            return copy
        shared.add(_storage(self.values[slot]))
        return slot

    def compiled(self) -> Callable[..., tuple[Tensor, ...]]:
        """Return a function of the inputs that runs the operations in TorchScript's interpreter, without Python."""
        builder = ScriptBuilder()
        values: dict[int, Any] = {slot: builder.tensor() for slot in (*self.inputs, *self.constants)}

        def read(leaf: Any) -> Any:
            return values[leaf.number] if isinstance(leaf, Slot) else leaf

        for operation in self.operations:
            result = operation.result
            made = builder.call(operation.function, _map(read, operation.args), _map(read, operation.kwargs))
            if isinstance(result, list):
                made = builder.unpack(made, len(result))
            for slot, value in zip(_leaves(result), _leaves(made), strict=True):
                if isinstance(slot, Slot):
                    values[slot.number] = value
        script = builder.function([values[slot] for slot in self.outputs])
        constants = tuple(self.constants.values())

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            # Unoptimised: the same kernels as always.
            with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[no-untyped-call]
                return script(*inputs, *constants)  # type: ignore[no-any-return]

        return run


def record(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Tape:
    """Write down the operations of a function of some tensors, autograd's included.

    Raises
    ------
    UncapturableError
        If it draws random numbers, writes to a tensor, or does what depends on numbers.
    """
    recorder = _Recorder(inputs)
    with recorder:
        recorder.tape.outputs = [recorder.slot(output) for output in function(*inputs)]
    return _tidy(recorder.tape)


class Stages(NamedTuple):
    """Two computations, of which the second begins with what the first has saved.

    Attributes
    ----------
    first : Tape
        x → outputs, and what is saved.
    second : Tape
        y and what was saved → output.
    saved : list of int
        Slots: the same in each recording of the same first stage.
    """

    first: Tape
    second: Tape
    saved: list[int]


def record_stages(
    first: Callable[[Tensor], tuple[Any, Sequence[Tensor]]],
    second: Callable[[Any, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    saved: list[int] | None = None,
) -> Stages:
    """Write down two computations.

    Parameters
    ----------
    first : callable
        ``first(x)`` returns a state and outputs.
    second : callable
        ``second(state, y)`` returns the output.
    x, y : Tensor
    saved : list of int, optional
        What another recording with the same first stage has saved: the second stage may take nothing else.

    Raises
    ------
    UncapturableError
        As :func:`record`; or if it would take something else.
    """
    recorder = _Recorder([x, y])
    tape = recorder.tape
    with recorder:
        state, outputs = first(x)
        n_first = len(tape.values)
        tape.outputs = [recorder.slot(output) for output in (*outputs, second(state, y))]
    tape = _tidy(tape)
    x_slot, y_slot = tape.inputs
    later = [each for each in tape.operations if max(_slots(each.result)) >= n_first]
    read = {slot for each in later for slot in _slots((each.args, each.kwargs))} | {tape.outputs[-1]}
    read -= {slot for each in later for slot in _slots(each.result)} | {y_slot, *tape.constants}
    saved = sorted(read) if saved is None else saved
    return Stages(
        tape.part([x_slot], tape.outputs[:-1], saved), tape.part([y_slot, *saved], tape.outputs[-1:]), saved
    )


class _Recorder(TorchDispatchMode):
    """Writes every operation to a tape."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.tape = Tape()
        # Tensors are known by their identity: all are kept, so that none is mistaken for another.
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []
        self._computed: dict[int, list[int]] = {}  # slots by memory
        self._written: dict[int, Tensor] = {}  # by slot: through which tensor its memory was written to since
        self.tape.inputs = [self._new(tensor) for tensor in inputs]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Save the seconds that importing the compiler takes."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Write down an operation, and compute it."""
        kwargs = kwargs or {}
        for tag in func.tags:
            if tag in _REFUSED:
                raise UncapturableError(f"{func} {_REFUSED[tag]}")
        read = _map(self._read, args), _map(self._read, kwargs)
        pure = self._without_writing(func, args[0]) if func._schema.is_mutable else func
        result = func(*args, **kwargs)
        made = _map(lambda leaf: Slot(self._computed_now(leaf)) if isinstance(leaf, Tensor) else leaf, result)
        self.tape.operations.append(Operation(pure, *read, made))
        return result

    def slot(self, tensor: Tensor) -> int:
        """Return the number of a tensor: a constant, if no operation gave it."""
        if id(tensor) not in self._numbers:
            if _storage(tensor) in self._computed:
                raise UncapturableError("a tensor changes hands outside of torch's operations")
            number = self._new(tensor)
            self.tape.constants[number] = tensor
        number = self._numbers[id(tensor)]
        if number in self._written:
            written = self._written[number]
            if _geometry(tensor) != _geometry(written):
                raise UncapturableError("a tensor is read that was written to by another name")
            return self.slot(written)
        return number

    def _read(self, leaf: Any) -> Any:
        return Slot(self.slot(leaf)) if isinstance(leaf, Tensor) else leaf

    def _new(self, tensor: Tensor) -> int:
        number = self._numbers[id(tensor)] = len(self.tape.values)
        self.tape.values[number] = tensor
        self._kept.append(tensor)
        return number

    def _computed_now(self, tensor: Tensor) -> int:
        """Return the number of a result: a new one, unless the operation has given what it was given."""
        if id(tensor) in self._numbers:
            return self._numbers[id(tensor)]
        number = self._new(tensor)
        if tensor.numel():
            self._computed.setdefault(_storage(tensor), []).append(number)
        return number

    def _without_writing(self, func: Any, written: Tensor) -> Any:
        """Return the operation that computes what another writes to a tensor, which gets a new number."""
        name = func._schema.name.removeprefix("aten::")
        writes = [each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments]
        pure = getattr(getattr(aten, name[:-1], None), func._overloadname, None)
        memory = _storage(written)
        given = (self.tape.values[slot] for slot in (*self.tape.inputs, *self.tape.constants))
        if (
            pure is None
            or writes != [True] + [False] * (len(writes) - 1)
            or memory not in self._computed
            or memory in set(map(_storage, given))
        ):
            raise UncapturableError(f"{func} writes to a tensor")
        for slot in self._computed[memory]:
            self.tape.values[slot] = self.tape.values[slot].clone()
            self._written[slot] = written
        self._computed[memory] = []
        del self._numbers[id(written)]
        return pure


def _tidy(tape: Tape) -> Tape:
    """Drop what does nothing, what is there already, and what depends on shapes alone; the kernels stay the same."""
    tidy = Tape()
    tidy.inputs, tidy.values = tape.inputs, tape.values
    constants = dict(tape.constants)
    folded: set[int] = set()  # constants that nobody else can write to
    transposed: dict[int, int] = {}
    renamed: dict[int, int] = {}
    known: dict[str, Any] = {}

    def rename(leaf: Any) -> Any:
        return Slot(renamed.get(leaf.number, leaf.number)) if isinstance(leaf, Slot) else leaf

    for operation in tape.operations:
        function, result = operation.function, operation.result
        args, kwargs = _map(rename, operation.args), _map(rename, operation.kwargs)
        read, made = _slots((args, kwargs)), _slots(result)
        if function in _SAME or (function is aten.t.default and args[0].number in transposed):
            source = args[0].number
            renamed[result.number] = source if function in _SAME else transposed[source]
            continue
        if function in _FILLS or (read and read <= folded):
            folded |= made
        elif not (function.is_view and read <= set(constants)):
            key = f"{function} {args} {kwargs}"
            if key in known:
                pairs = zip(_leaves(result), _leaves(known[key]), strict=True)
                renamed |= {new.number: old.number for new, old in pairs if isinstance(new, Slot)}
                continue
            known[key] = result
            if function is aten.t.default:
                transposed[result.number] = args[0].number
            tidy.operations.append(Operation(function, args, kwargs, result))
            continue
        constants |= {slot: tape.values[slot] for slot in made}
    tidy.constants = constants
    tidy.outputs = [renamed.get(slot, slot) for slot in tape.outputs]
    return tidy


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _is_leaf(node: Any) -> bool:
    return isinstance(node, Slot)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    return tree_map(function, tree, is_leaf=_is_leaf)


def _leaves(tree: Any) -> list[Any]:
    return tree_leaves(tree, is_leaf=_is_leaf)


def _slots(tree: Any) -> set[int]:
    return {leaf.number for leaf in _leaves(tree) if isinstance(leaf, Slot)}
