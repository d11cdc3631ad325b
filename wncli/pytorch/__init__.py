"""Weight norm of live PyTorch models and of tensors in memory; the only package that needs torch.

Example:
    >>> import wncli.pytorch as wn
    >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
    >>> list(wn.fold(model.state_dict()))
    ['bias', 'weight']
"""

try:
    import torch as _torch  # noqa: F401 - all modules here need it
except ImportError:
    message = "wncli.pytorch needs PyTorch: pip install 'wncli[torch]'"
    raise ImportError(message) from None

from wncli.pytorch.application import apply_weight_norm
from wncli.pytorch.initialization import initialize
from wncli.pytorch.loading import load_weights
from wncli.pytorch.removal import remove_weight_norm
from wncli.pytorch.results import Loaded
from wncli.pytorch.saving import save
from wncli.pytorch.state_dicts import fit, fold, respell, split

__all__ = [
    "Loaded",
    "apply_weight_norm",
    "fit",
    "fold",
    "initialize",
    "load_weights",
    "remove_weight_norm",
    "respell",
    "save",
    "split",
]
