from collections.abc import Callable

from wncli.formats.pickles.nodes import Call, Global, Node, PersistentId

def carry_out(
    data: bytes,
    place: int,
    stack: list[Node],
    marks: list[list[Node]],
    memo: list[Node],
    persistent_ids: list[PersistentId],
    calls: list[Call],
    persistent_id: type[PersistentId],
    call: type[Call],
    /,
) -> tuple[int, list[Node]]: ...
def write(
    work: list[Node],
    memo: dict[int, int],
    kept_alive: list[Node],
    begun: dict[int, int],
    persistent: Callable[[PersistentId], Node],
    global_: type[Global],
    call: type[Call],
    persistent_id: type[PersistentId],
    /,
) -> bytes: ...
