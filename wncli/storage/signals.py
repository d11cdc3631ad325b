"""How Ctrl-C, SIGTERM and SIGHUP end the program: at once, or when what it began is cleared away.

Lack of memory ends it too, wherever it comes up. `wn` imports this before anything else, because
until then both show a traceback. So it imports next to nothing itself. A library takes no signals:
nothing here does anything before `end_when_interrupted` is called.
"""

import _signal  # type: ignore[import-not-found]  # `signal` makes enums, for longer than all of this
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What ends a run; Windows has no SIGHUP.
ENDING = [getattr(_signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, n)]
INTERRUPTED = 130
#: The exit code of what is refused, or fails.
REFUSED = 2
_OUT_OF_MEMORY = b"error: out of memory: the system, or a limit (ulimit -v), gives no more\n"
_WRITING = ("apply", "remove", "convert")


class _Unfinished:
    """`with unfinished:` is around what has to be cleared away before the process may end.

    There an interruption is a KeyboardInterrupt, so that the clean-up runs. Python drops one that
    comes up in a finalizer or in a callback, as those of its import system, so it is remembered.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_interrupted = False

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self.end_if_interrupted()

    def end_if_interrupted(self) -> None:
        """Raise an interruption once more, which may have been dropped the first time.

        Raises:
            KeyboardInterrupt: the program has been interrupted.
        """
        if self.is_interrupted:
            raise KeyboardInterrupt


unfinished = _Unfinished()
#: What ends the waiting of other threads for a command, by the thread that runs it.
waking: "set[tuple[int, Callable[[], None]]]" = set()


def wake_all(runner: int) -> None:
    """End what the threads of a command are waiting for, as it has failed."""
    for thread, wake in tuple(waking):
        if thread == runner:
            wake()


_is_reported = False
_other_hook = sys.unraisablehook


def end_when_interrupted() -> None:
    """Have the signals that end a run end this process, except those that it is to ignore."""
    global _other_hook
    for number in ENDING:
        if _signal.getsignal(number) != _signal.SIG_IGN:  # as nohup has it
            _signal.signal(number, _end)
    if sys.unraisablehook is not _show_dropped:
        _other_hook, sys.unraisablehook = sys.unraisablehook, _show_dropped
    sys.excepthook = _end_at_failure


def report_interruption() -> None:
    """Print the message, once, past the buffers of streams that may be in use."""
    global _is_reported  # noqa: PLW0603 - it is about the process
    if _is_reported:
        return
    _is_reported = True
    writes = sys.argv[1:2] and sys.argv[1] in _WRITING
    message = "interrupted: OUTPUT is as it was before, or complete" if writes else "interrupted"
    try:
        if sys.stderr:  # else it is closed, and its number may be that of another file
            os.write(sys.stderr.fileno(), f"{message}\n".encode())
    except OSError:
        pass  # nobody is there to read it


def is_out_of_memory(error: "BaseException | None") -> bool:
    """Whether an exception, or one that it comes of, is for lack of memory.

    What loads a library tells that in words only (dlopen(3)), and Python at times in none: a
    SystemError says that an exception was lost, and its parser finds errors in sound files.
    """
    while error:
        if isinstance(error, MemoryError | SystemError | SyntaxError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, ImportError):
            words = str(error)
            if "failed to map segment" in words or "annot allocate memory" in words:
                return True
        error = error.__cause__ or error.__context__
    return False


def report_out_of_memory() -> None:
    """Print the message, past all buffers and with nothing that would take memory."""
    try:
        if sys.stderr:  # else its number may be that of another file
            os.write(2, _OUT_OF_MEMORY)
    except OSError:
        pass  # nobody is there to read it


def _end_at_failure(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """End at what nothing has caught, as in the imports that come first."""
    if not issubclass(kind, Exception) or os.environ.get("WN_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]
        return
    code = REFUSED
    try:
        if is_out_of_memory(error):
            report_out_of_memory()
        else:
            problem = f"error: wn cannot start ({kind.__name__}: {error})"
            os.write(2, f"{problem.splitlines()[0]}\n".encode(errors="backslashreplace"))
    except MemoryError:
        report_out_of_memory()
    finally:
        os._exit(code)


def _end(_number: int, _frame: object) -> None:
    if _is_reported:
        return  # it is about to end
    if unfinished.count:
        unfinished.is_interrupted = True
        raise KeyboardInterrupt
    report_interruption()
    os._exit(INTERRUPTED)  # an exception might be dropped, or shown as a traceback


def _show_dropped(dropped: "sys.UnraisableHookArgs") -> None:
    """Show what Python has to drop, except an interruption, which `unfinished` remembers.

    Lack of memory in a finalizer is no message of its own either.
    """
    if dropped.exc_type not in (KeyboardInterrupt, MemoryError):
        _other_hook(dropped)
