"""Copies bytes from file to file, inside the kernel where it can, through memory where it cannot.

ioctl_ficlone(2), copy_file_range(2), sendfile(2): each is not there on some file system or system.
"""

from __future__ import annotations

import errno
import fcntl
import os

from wncli.formats.files import Source

#: Bytes of one step, between which a run can be stopped and progress shown.
_STEP = 16 << 20
#: Bytes that go through memory at a time.
_BLOCK = 1 << 20
#: `_IOW(0x94, 9, int)` of linux/fs.h.
_FICLONE = 0x40049409
_NOT_HERE = {
    errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF,
    errno.ENOENT, errno.ENOTTY, errno.EACCES,
}  # fmt: skip


def clone(source: Source, descriptor: int) -> bool:
    """Let a file share all the blocks of `source`, where the file system can."""
    try:
        fcntl.ioctl(descriptor, _FICLONE, source.file.fileno())
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return False
    os.ftruncate(descriptor, source.nbytes)  # the source may have grown, or shrunk
    return os.fstat(source.file.fileno()).st_size >= source.nbytes


def copy_some(source: Source, offset: int, descriptor: int, target: int, most: int) -> int:
    """Copy some bytes from `offset` to `target`, and say how many; at least one, at most `most`.

    Raises:
        FormatError: the source ends before.
        OSError: the target cannot be written.
    """
    for way in (_copy_file_range, _send_file):
        try:
            moved = way(source, offset, descriptor, target, min(_STEP, most))
        except AttributeError:  # not on this system
            continue
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            continue
        if not moved:
            raise source.truncated("the tensors", offset + most)
        return moved
    data = source.read_at(offset, min(_BLOCK, most), "the tensors")
    return os.pwrite(descriptor, data, target)


def _copy_file_range(source: Source, offset: int, descriptor: int, target: int, count: int) -> int:
    return os.copy_file_range(source.file.fileno(), descriptor, count, offset, target)


def _send_file(source: Source, offset: int, descriptor: int, target: int, count: int) -> int:
    """It writes where a descriptor stands, which other threads move: it gets one of its own."""
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.lseek(own, target, os.SEEK_SET)
        return os.sendfile(own, source.file.fileno(), offset, count)
    finally:
        os.close(own)
