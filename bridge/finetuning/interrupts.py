"""Let Ctrl-C and SIGTERM stop a run at once, but never in the middle of an update."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class Interrupts:
    """A context in which a signal raises :class:`KeyboardInterrupt` at once, except in what is :meth:`held` together.

    There, and where several processes have to stop together, the first signal only sets :attr:`asked`, and the second
    one interrupts at once.

    Args:
        alone: Whether this process may stop without others.
        tell: Called where a signal has to wait.

    Attributes:
        asked: Whether a signal has come, and waits.
        cut: Whether a signal cut in two what was held together, or a step that other processes compute on.
    """

    def __init__(self, alone: bool = True, tell: Callable[[], None] = lambda: None) -> None:
        self.asked = self.cut = False
        self._alone, self._tell, self._held = alone, tell, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold together what would leave half of a step behind: a first signal waits for its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked or (self._alone and not self._held):
            self.cut = self._held or not self._alone
            raise KeyboardInterrupt
        self.asked = True
        self._tell()
