"""Weight normalization in saved checkpoints, listed, applied, removed without the model's code.

    inspect                        what a checkpoint holds: a `Report`
    apply, remove, convert         write another checkpoint: a `Report`
    compare                        whether two are the same model: a `Comparison`
    magnitude, decompose, compose  the arithmetic, of NumPy arrays and PyTorch tensors

`help(wncli.inspect)` says all about one of them. A report has `layers`, whose `g` and `v` are read
when they are asked for, `to_rows()` for pandas and `plot()`. What is refused is a `WnError`. What
is not used is not imported: neither NumPy nor the terminal libraries come with `import wncli`.

Example:
    >>> import wncli
    >>> report = wncli.remove("sample_models/hifigan_generator", "folded.safetensors")
    >>> report.parameters.change
    -369
    >>> wncli.inspect("folded.safetensors").layers
    ()
"""

# Nothing is imported here at once: the program is to notice Ctrl-C as early as possible.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison, TensorDifference
    from wncli.api import apply, compare, convert, inspect, remove
    from wncli.arithmetic.weight_norm import compose, decompose, magnitude
    from wncli.errors import FileError, FormatError, UsageError, WeightNormError, WnError
    from wncli.notes import Note
    from wncli.report import Layer, NothingToDo, Parameters, Report

__all__ = [
    "Comparison",
    "FileError",
    "FormatError",
    "Layer",
    "Note",
    "NothingToDo",
    "Parameters",
    "Report",
    "TensorDifference",
    "UsageError",
    "WeightNormError",
    "WnError",
    "__version__",
    "apply",
    "compare",
    "compose",
    "convert",
    "decompose",
    "inspect",
    "magnitude",
    "remove",
]

__version__ = "0.2.0"

_ROOMS = {
    "apply": "api",
    "compare": "api",
    "convert": "api",
    "inspect": "api",
    "remove": "api",
    "compose": "arithmetic.weight_norm",
    "decompose": "arithmetic.weight_norm",
    "magnitude": "arithmetic.weight_norm",
    "Comparison": "analysis.comparison",
    "TensorDifference": "analysis.comparison",
    "FileError": "errors",
    "FormatError": "errors",
    "UsageError": "errors",
    "WeightNormError": "errors",
    "WnError": "errors",
    "Layer": "report",
    "NothingToDo": "report",
    "Note": "notes",
    "Parameters": "report",
    "Report": "report",
}


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    return getattr(import_module(f"wncli.{_ROOMS[name]}"), name)
