"""How many files this process may hold open."""

from __future__ import annotations

import contextlib

#: Open files that every system's default limit leaves room for.
FEW_FILES = 200


def raise_file_limit(count: int) -> int:
    """Let this process hold `count` files open, as far as the system allows; return how many."""
    if count <= FEW_FILES:
        return FEW_FILES
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + FEW_FILES
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        return count if soft == resource.RLIM_INFINITY else max(1, min(count, soft - FEW_FILES))
    return FEW_FILES
