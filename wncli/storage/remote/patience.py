"""How long is waited for other machines, and how often they are asked again.

Source: huggingface_hub `utils/_http.py` (`http_backoff`), which downloads go through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from wncli.errors import FileError, WnError
from wncli.storage.signals import waking

Result = TypeVar("Result")

#: What a server says where it may well answer the next time.
BUSY = frozenset({408, 429, 500, 502, 503, 504})


class Patience(NamedTuple):
    """How often is asked again, and the seconds before that, which double.

    `timeout` are the seconds in which a server has to be reached, and to send something; `slowest`
    the bytes a second that count as something.
    """

    retries: int = 5
    first: float = 1.0
    longest: float = 8.0
    timeout: float = 10.0
    slowest: int = 1024


PATIENCE = Patience()


class AgainError(Exception):
    """What may work the next time; `refusal` is what to say where it never does."""

    def __init__(self, refusal: WnError, wait: float = 0.0) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.wait = wait


class Stop:
    """Ends all waiting once something has failed; `wake` ends what a thread is waiting for."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.event = threading.Event()
        self.wake = wake
        self.entry = (threading.get_ident(), self)
        waking.add(self.entry)

    def __call__(self) -> None:
        """End all waiting."""
        self.event.set()
        self.wake()

    def close(self) -> None:
        """Have nothing more to end."""
        waking.discard(self.entry)


def patiently(attempt: Callable[[], Result], where: str, stop: Stop) -> Result:
    """Call `attempt` until it does not ask for another time.

    Raises:
        WnError: it was refused, or asked once too often.
    """
    wait = PATIENCE.first
    for left in reversed(range(PATIENCE.retries + 1)):
        if stop.event.is_set():
            break
        try:
            return attempt()
        except AgainError as again:
            if not left:
                raise again.refusal from None
            stop.event.wait(max(wait, min(again.wait, PATIENCE.longest)))
            wait = min(2 * wait, PATIENCE.longest)
    raise FileError(where, "reading it was ended, as something else has failed")
