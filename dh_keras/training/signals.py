"""Stopping on request: a signal is noted, and training stops where nothing is lost."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from dh_keras.errors import Interrupted
from dh_keras.training.workers.workers import Workers

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, SIGTERM and the first Ctrl-C are noted; a second Ctrl-C stops at once.

    Python hands signals to the main thread only; entered in another, as under a server, this leaves them as they are.

    Args:
        steps_done: gives the number of steps that are done and saved.
        command: what goes on from there.
    """

    def __init__(self, steps_done: Callable[[], int], command: str):
        self.number: int | None = None
        self._steps_done = steps_done
        self._command = command
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{signal.Signals(number).name}: finishing the step and saving\n".encode())

    def agree(self, workers: Workers) -> None:
        """Take over a signal that came to another worker; every worker must call this."""
        numbers = [number for number in workers.exchange(self.number) if number is not None]
        if self.number is None and numbers:
            self.number = numbers[0]

    def leave_if_asked(self, _: object = None) -> None:
        """Raise `Interrupted` when a signal came; to be called where everything is saved."""
        if self.number is not None:
            name, step = signal.Signals(self.number).name, self._steps_done()
            raise Interrupted(f"stopped by {name} after step {step}; go on with: {self._command}", 128 + self.number)
