"""A computation as a flat list of torch's operations, recorded once and replayed without autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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
# Operations on a tape: where there are more, a loop over samples or vectors runs, and recording takes long.
_MOST = 2000
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

    @property
    def reads(self) -> set[int]:
        """The slots of the arguments."""
        return _slots((self.args, self.kwargs))

    @property
    def makes(self) -> set[int]:
        """The slots of the result."""
        return _slots(self.result)

    @property
    def writes(self) -> set[int]:
        """The slots of the arguments that are written to."""
        arguments = self.function._schema.arguments
        named = dict(zip((each.name for each in arguments), self.args, strict=False)) | self.kwargs
        written = [
            each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write
        ]
        return _slots([named.get(name) for name in written])


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
        return {_memory(self.values[slot]) for slot in slots}

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
        if _memory(self.values[slot]) in shared:
            copy = len(self.values)
            self.values[copy] = self.values[slot].clone()
            self.operations.append(Operation(aten.clone.default, (Slot(slot),), {}, Slot(copy)))
            return copy
        shared.add(_memory(self.values[slot]))
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
        recorder.protect()
        tape.outputs = [recorder.slot(output) for output in (*outputs, second(state, y))]
    tape = _tidy(tape)
    x_slot, y_slot = tape.inputs
    later = [each for each in tape.operations if max(each.makes) >= n_first]
    read = {slot for each in later for slot in each.reads} | {tape.outputs[-1]}
    read -= {slot for each in later for slot in each.makes} | {y_slot, *tape.constants}
    saved = sorted(read) if saved is None else saved
    return Stages(
        tape.part([x_slot], tape.outputs[:-1], saved), tape.part([y_slot, *saved], tape.outputs[-1:]), saved
    )


class _Recorder(TorchDispatchMode):
    """Writes every operation to a tape."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.tape = Tape()
        # Tensors are known by their identity; the tape keeps all, so that none is mistaken for another.
        self._numbers: dict[int, int] = {}
        self._computed: set[int] = set()  # memory that results lie in, and that operations may write to
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
        if len(self.tape.operations) >= _MOST:
            raise UncapturableError(f"there are more than {_MOST} operations")
        for tag in func.tags:
            if tag in _REFUSED:
                raise UncapturableError(f"{func} {_REFUSED[tag]}")
        read = _map(self._read, args), _map(self._read, kwargs)
        operation = Operation(func, *read, None)
        for slot in operation.writes:
            if _memory(self.tape.values[slot]) not in self._computed:
                raise UncapturableError(f"{func} writes to a tensor that it was given")
        result = func(*args, **kwargs)
        made = _map(lambda leaf: Slot(self._result(leaf)) if isinstance(leaf, Tensor) else leaf, result)
        self.tape.operations.append(operation._replace(result=made))
        return result

    def protect(self) -> None:
        """Allow no operation from now on to write to what there is."""
        self._computed.clear()

    def slot(self, tensor: Tensor) -> int:
        """Return the number of a tensor: a constant, if no operation gave it."""
        if id(tensor) not in self._numbers:
            if _memory(tensor) in {_memory(value) for value in self.tape.computed()}:
                raise UncapturableError("a tensor changes hands outside of torch's operations")
            self.tape.constants[self._new(tensor)] = tensor
        return self._numbers[id(tensor)]

    def _read(self, leaf: Any) -> Any:
        return Slot(self.slot(leaf)) if isinstance(leaf, Tensor) else leaf

    def _new(self, tensor: Tensor) -> int:
        number = self._numbers[id(tensor)] = len(self.tape.values)
        self.tape.values[number] = tensor
        return number

    def _result(self, tensor: Tensor) -> int:
        """Return the number of a result: a new one, unless the operation has given what it was given."""
        if id(tensor) in self._numbers:
            return self._numbers[id(tensor)]
        number = self._new(tensor)
        if _memory(tensor) not in {_memory(value) for value in self.tape.given()}:
            self._computed.add(_memory(tensor))
        return number


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

    written = tape.memory({slot for each in tape.operations for slot in each.writes})
    for operation in tape.operations:
        function, result, made = operation.function, operation.result, operation.makes
        args, kwargs = _map(rename, operation.args), _map(rename, operation.kwargs)
        read = _slots((args, kwargs))
        if written & tape.memory(read | made):
            tidy.operations.append(Operation(function, args, kwargs, result))
        elif function in _SAME or (function is aten.t.default and args[0].number in transposed):
            source = args[0].number
            renamed[result.number] = source if function in _SAME else transposed[source]
        elif function in _FILLS or (read and read <= folded):
            folded |= made
            constants |= {slot: tape.values[slot] for slot in made}
        elif function.is_view and read <= set(constants):
            constants |= {slot: tape.values[slot] for slot in made}
        elif (key := f"{function} {args} {kwargs}") in known:
            pairs = zip(_leaves(result), _leaves(known[key]), strict=True)
            renamed |= {new.number: old.number for new, old in pairs if isinstance(new, Slot)}
        else:
            known[key] = result
            if function is aten.t.default:
                transposed[result.number] = args[0].number
            tidy.operations.append(Operation(function, args, kwargs, result))
    tidy.constants = constants
    tidy.outputs = [renamed.get(slot, slot) for slot in tape.outputs]
    return tidy


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_leaf(node: Any) -> bool:
    return isinstance(node, Slot)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    return tree_map(function, tree, is_leaf=_is_leaf)


def _leaves(tree: Any) -> list[Any]:
    return tree_leaves(tree, is_leaf=_is_leaf)


def _slots(tree: Any) -> set[int]:
    return {leaf.number for leaf in _leaves(tree) if isinstance(leaf, Slot)}
