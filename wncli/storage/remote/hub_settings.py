"""What the environment says about the Hugging Face Hub: where it is, who asks, what is kept here.

Source: huggingface_hub `constants.py`, `utils/_auth.py`; "Environment variables" in its manual.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_ENDPOINT = "https://huggingface.co"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TRUE = {"1", "ON", "YES", "TRUE"}


class HubSettings(NamedTuple):
    """Where the hub is, the token for it, where there can be one, and the cache."""

    endpoint: str
    token: str
    token_file: Path
    cache: Path
    is_offline: bool

    @property
    def looked_for(self) -> str:
        """Say which token is used, or where none was found."""
        if self.token:
            named = [name for name in _TOKENS if _clean(os.environ.get(name, ""))]
            return f"the token of {named[0] if named else self.token_file}"
        if _is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            return "no token: HF_HUB_DISABLE_IMPLICIT_TOKEN is set"
        return f"no token: neither in HF_TOKEN nor in {self.token_file}"


def hub_settings() -> HubSettings:
    """Read the environment, as huggingface_hub does it."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    home = _path("HF_HOME", str(Path(cache_home) / "huggingface"))
    token_file = _path("HF_TOKEN_PATH", str(home / "token"))
    cache = os.environ.get("HUGGINGFACE_HUB_CACHE") or str(home / "hub")
    return HubSettings(
        os.environ.get("HF_ENDPOINT", _ENDPOINT).rstrip("/") or _ENDPOINT,
        _token(token_file),
        token_file,
        _path("HF_HUB_CACHE", cache),
        _is_true("HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"),
    )


def _token(file: Path) -> str:
    if _is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return ""
    named = next(filter(None, map(os.environ.get, _TOKENS)), "")
    try:
        return _clean(named) or _clean(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""


def _clean(token: str) -> str:
    """Leave out what cannot be in a header."""
    token = token.replace("\r", "").replace("\n", "").strip()
    return token if token.isascii() and token.isprintable() else ""


def _path(variable: str, otherwise: str) -> Path:
    return Path(os.path.expandvars(os.environ.get(variable) or otherwise)).expanduser()


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _TRUE
