"""Who may read and write a file: what one that takes another's place keeps of that.

Nothing is ever wider than before. A file begins with its owner's rights alone, gets the rest before
its first byte, and loses what meant an owner, a group or a list that the system does not let be
kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

#: The list of users and groups beside the mode (acl(5)), whose group bits are its mask then.
_ACL = "system.posix_acl_access"
#: About the very bytes of a file (Linux, security/integrity), which are others now.
_OF_CONTENT = frozenset({"security.ima", "security.evm"})


def first_mode(replaced: Path) -> int:
    """Give the mode to create a file with: its owner's part of what is replaced, or any new one's.

    Raises:
        OSError: the system does not say.
    """
    try:
        return replaced.stat().st_mode & 0o600
    except FileNotFoundError:
        return 0o666


def take_over(descriptor: int, old: Path, *, is_complete: bool, owner: bool = True) -> None:
    """Give a new file the mode, the access list and the extended attributes of `old`.

    Its owner and group too where the system lets us, unless `owner` is not asked for. What runs
    as somebody else (setuid, setgid) does so once it `is_complete`; writing would clear that.

    Raises:
        OSError: the system does not let the mode be set.
    """
    if not hasattr(os, "fchown"):  # Windows, where the folder decides
        return
    found = old.stat()
    mode = stat.S_IMODE(found.st_mode)
    if owner:
        _give(descriptor, found)
    new = os.fstat(descriptor)
    if new.st_uid != found.st_uid:
        mode &= ~stat.S_ISUID
    keeps_group = new.st_gid == found.st_gid
    if not keeps_group:  # either group's members may be everybody else for the other one
        both = (mode >> 3) & mode & 0o7
        mode = mode & ~(stat.S_ISGID | 0o077) | both << 3 | both
    if not _copy_attributes(descriptor, old, with_list=keeps_group):
        mode &= ~(stat.S_ISGID | 0o077)
    os.fchmod(descriptor, mode if is_complete else mode & 0o777)


def _give(descriptor: int, found: os.stat_result) -> None:
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) == (found.st_uid, found.st_gid):
        return
    try:
        os.fchown(descriptor, found.st_uid, found.st_gid)
    except OSError:
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, found.st_gid)


def _copy_attributes(descriptor: int, old: Path, *, with_list: bool) -> bool:
    """Copy the extended attributes; False where an access list is lost with which the mode lies."""
    if not hasattr(os, "listxattr"):
        return True
    names: list[str] = []
    with contextlib.suppress(OSError):  # a file system without any
        names = os.listxattr(old)
    for name in names:
        if name != _ACL and name not in _OF_CONTENT:
            with contextlib.suppress(OSError):  # not for everybody to read, or to set
                os.setxattr(descriptor, name, os.getxattr(old, name))
    if with_list and _ACL in names:
        with contextlib.suppress(OSError):
            os.setxattr(descriptor, _ACL, os.getxattr(old, _ACL))
            return True
    with contextlib.suppress(OSError):  # what the directory gives to new files
        if _ACL in os.listxattr(descriptor):
            os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o600)
            os.removexattr(descriptor, _ACL)
    return _ACL not in names
