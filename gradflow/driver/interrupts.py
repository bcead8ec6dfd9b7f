"""Signals that end a run, held back until the step is done."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_HELD_BACK = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Holds back the first SIGINT or SIGTERM while a run goes on, so that it ends between two steps.

    A second one is delivered at once. Outside the main thread, where signals aren't delivered, it does nothing.

    Attributes
    ----------
    pending : signal.Signals or None
        The signal that came.
    """

    def __init__(self) -> None:
        self.pending: signal.Signals | None = None
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            # What was not installed from Python (None) couldn't be put back; what is ignored stays ignored.
            now = {each: signal.getsignal(each) for each in _HELD_BACK}
            self._before = {each: how for each, how in now.items() if how not in {None, signal.SIG_IGN}}
            for each in self._before:
                signal.signal(each, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Return the signals back."""
        self._give_back()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        if os.getpid() == self._process:
            self.pending = signal.Signals(number)
        else:  # a worker that was forked from the run, and has nothing to finish
            signal.raise_signal(number)

    def _give_back(self) -> None:
        for each, how in self._before.items():
            signal.signal(each, how)
        self._before = {}
