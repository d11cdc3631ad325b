"""The fixed parts of a zip's records, little-endian, magic first (PKWARE APPNOTE.TXT 4.3)."""

from __future__ import annotations

import struct

CENTRAL_MAGIC = b"PK\x01\x02"
LOCAL_MAGIC = b"PK\x03\x04"


def read_mark(start: bytes) -> bytes:
    """Return the version mark that a zip beginning so has in place of PK; empty where it has none.

    Source: GPT-SoVITS `GPT_SoVITS/process_ckpt.py`: `my_save2` writes two digits over the first two
    bytes of what `torch.save` writes to memory, 03 to 06 (00 to 02 are known to `head2version`,
    which refuses what it does not know; forks go on with 07), `load_sovits_new` puts PK back.
    """
    is_marked = start[:2].isdigit() and start[2:4] == LOCAL_MAGIC[2:]
    return start[:2] if is_marked else b""


#: How the members of an .npz file are called behind the names of the arrays.
NPY = ".npy"

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")


def begins_npz(start: bytes) -> bool:
    """Whether a zip that begins so has an array of NumPy for its first member."""
    if len(start) < LOCAL.size or not start.startswith(LOCAL_MAGIC):
        return False
    end = LOCAL.size + LOCAL.unpack_from(start)[-2]
    return end <= len(start) and start[LOCAL.size : end].endswith(NPY.encode())
