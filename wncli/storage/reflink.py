"""Lets an output share the blocks of an input on the disk, where the file system can."""

from __future__ import annotations

import errno
import os

from wncli.storage.source import LocalSink, LocalSource, Sink, Source

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

#: `_IOW(0x94, 9, int)` of linux/fs.h; ioctl_ficlone(2).
_FICLONE = 0x40049409
_NOT_HERE = {
    errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF,
    errno.ENOENT, errno.ENOTTY, errno.EACCES,
}  # fmt: skip


def clone(source: Source, sink: Sink) -> bool:
    """Let a file share all the blocks of `source`; False where that cannot be done."""
    if not (fcntl and isinstance(source, LocalSource) and isinstance(sink, LocalSink)):
        return False
    if source.begin:
        return False
    descriptor = sink.file.fileno()
    try:
        fcntl.ioctl(descriptor, _FICLONE, source.file.fileno())
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return False
    os.ftruncate(descriptor, source.nbytes)  # the source may have grown, or shrunk
    return os.fstat(source.file.fileno()).st_size >= source.nbytes
