"""Recording what a computation calls in torch, autograd's calls included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradflow.loss.tape import (
    Operation,
    Slot,
    Tape,
    UncapturableError,
    leaves_of,
    map_slots,
    memory_of,
    slots_of,
)

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
        read = map_slots(self._read, args), map_slots(self._read, kwargs)
        operation = Operation(func, *read, None)
        for slot in operation.writes:
            if memory_of(self.tape.values[slot]) not in self._computed:
                raise UncapturableError(f"{func} writes to a tensor that it was given")
        result = func(*args, **kwargs)
        made = map_slots(lambda leaf: Slot(self._result(leaf)) if isinstance(leaf, Tensor) else leaf, result)
        self.tape.operations.append(operation._replace(result=made))
        return result

    def protect(self) -> None:
        """Allow no operation from now on to write to what there is."""
        self._computed.clear()

    def slot(self, tensor: Tensor) -> int:
        """Return the number of a tensor: a constant, if no operation gave it."""
        if id(tensor) not in self._numbers:
            if memory_of(tensor) in {memory_of(value) for value in self.tape.computed()}:
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
        if memory_of(tensor) not in {memory_of(value) for value in self.tape.given()}:
            self._computed.add(memory_of(tensor))
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
        args, kwargs = map_slots(rename, operation.args), map_slots(rename, operation.kwargs)
        read = slots_of((args, kwargs))
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
            pairs = zip(leaves_of(result), leaves_of(known[key]), strict=True)
            renamed |= {new.number: old.number for new, old in pairs if isinstance(new, Slot)}
        else:
            known[key] = result
            if function is aten.t.default:
                transposed[result.number] = args[0].number
            tidy.operations.append(Operation(function, args, kwargs, result))
    tidy.constants = constants
    tidy.outputs = [renamed.get(slot, slot) for slot in tape.outputs]
    return tidy
