"""Decides what in a pickle would run: the calls that do more than make values of plain things.

A call makes a value where its function is a global that is listed for it (`safe_globals`), and what
it is handed is what that takes. What has something of unknown code in it, an object of another
package's class or a function, may be kept and no more: to iterate over it, to hash, compare or
convert it, or to look an attribute up on it may run that code. Such an object by itself is not
counted, as nobody can tell from a file what its class does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType

from wncli.formats.pickles.nodes import (
    Added,
    Appended,
    Built,
    ByteText,
    Call,
    Dict,
    Effect,
    Global,
    Node,
    PersistentId,
    Set,
    SetItems,
    Unread,
    is_called,
)
from wncli.formats.pickles.reader import Pickle
from wncli.formats.torch.safe_globals import (
    ATTRIBUTES,
    FOREIGN,
    Handed,
    Use,
    full_name,
    is_class,
    is_plain,
    use_of,
)
from wncli.formats.torch.tensors import class_of

#: What the base of an object that `copyreg._reconstructor` makes does with its third argument.
_BASES = {
    "builtins.object": Handed.PLAIN,
    "builtins.dict": Handed.PAIRS,
    "builtins.list": Handed.ITEMS,
    "builtins.set": Handed.ITEMS,
    "builtins.frozenset": Handed.ITEMS,
    "builtins.tuple": Handed.ITEMS,
    "builtins.bytes": Handed.PLAIN,
    "builtins.float": Handed.PLAIN,
    "builtins.int": Handed.PLAIN,
    "builtins.str": Handed.PLAIN,
}
#: Attributes of an object that are called, or change what is, as it is unpickled: by the unpickler,
#: and by `torch.nn.Module.__setstate__`.
_LOOKED_UP = frozenset({"__class__", "__setstate__", "register_buffer", "register_parameter"})
#: The attributes of a module that its `__setstate__` looks into.
_MODULE_PARTS = frozenset({"_buffers", "_modules", "_parameters"})
#: Fewer dims have tensors, and arguments their calls; to look through more each time takes long.
_MOST_SIZES = 16
_Uses = Mapping[int, Use | None]


def find_running(pickled: Pickle) -> Iterator[Node]:
    """Give the calls of a pickle that would run something, and the functions that they are handed.

    Also the names that no file should have, whatever is done with them.
    """
    uses = {id(node): use_of(node) for node in pickled.globals}
    unknown = [node for node in pickled.globals if not is_plain(uses[id(node)])]
    code = [node for node in unknown if uses[id(node)] is None]
    tainted = _tainted(pickled.calls, unknown, uses) if unknown else None
    judge = _Judge(uses, tainted, has_code=bool(code))
    running = sorted(filter(judge.runs, pickled.calls), key=lambda call: bool(call.effects))
    yield from running  # what is handed to an object after what it is made of
    yield from code
    if unknown:
        yield from judge.functions_in(running)


def parts_of(node: Node) -> Iterator[Node]:
    """Return the nodes that a node is made of."""
    match node:
        case list() | tuple():
            yield from node
        case Set(items):
            yield from items
        case Dict(entries):
            for key, value in entries:
                yield key
                yield value
        case PersistentId(pid):
            yield pid
        case Call():
            yield from (node.function, node.args, node.keywords)
            for effect in node.effects:
                yield from handed_by(effect)


def handed_by(effect: Effect) -> Iterator[Node]:
    """Return what is handed to an object after it was made."""
    match effect:
        case Appended(items) | Added(items):
            yield from items
        case SetItems(entries):
            for key, value in entries:
                yield key
                yield value
        case Built(state):
            yield state


#: The types of what has no parts.
PLAIN = frozenset({str, bytes, int, float, bool, type(None), bytearray, ByteText, Unread})


def _tainted(calls: Iterable[Call], unknown: Iterable[Global], uses: _Uses) -> set[int]:
    """Return the ids of the globals that are unknown, and of what these are somewhere in.

    Only of what is handed to a call that looks into it, which the large parts of a file are not.
    """
    holders: dict[int, list[int]] = {}
    stack: list[Node] = [call for call in calls if _is_looking(call, uses)]
    seen = {id(node) for node in stack}
    while stack:
        node = stack.pop()
        parts = node if type(node) in (tuple, list) else _telling_parts(node, uses)
        for part in parts:
            if _is_surely_plain(part, uses):
                continue
            holders.setdefault(id(part), []).append(id(node))
            if id(part) not in seen:
                seen.add(id(part))
                stack.append(part)
    found = {id(node) for node in unknown}
    ids = list(found)
    while ids:
        for holder in holders.get(ids.pop(), ()):
            if holder not in found:
                found.add(holder)
                ids.append(holder)
    return found


def _is_surely_plain(node: Node, uses: _Uses) -> bool:
    """Whether this is what tensors are made of: numbers, names, storages, sizes, and no hooks."""
    kind = type(node)
    if kind is tuple:
        return len(node) <= _MOST_SIZES and PLAIN.issuperset(map(type, node))
    if kind is Global:
        return is_plain(uses[id(node)])
    if kind is Call:
        is_value = type(node.function) is Global and is_plain(uses[id(node.function)])
        return is_value and node.args == () and node.keywords is None and not node.effects
    return kind in PLAIN or (kind is PersistentId and class_of(node) is None)


def _is_looking(call: Call, uses: _Uses) -> bool:
    """Whether it matters what a call, or its result, is handed."""
    callee = class_of(call.function)
    use = uses[id(callee)] if callee else None
    if use is None:
        return False
    if use is FOREIGN:
        return any(not isinstance(effect, (Built, SetItems)) for effect in call.effects)
    is_looked_into = use.state is Handed.PLAIN or use.args is Handed.JUDGED
    if call.keywords is not None or (call.effects and is_looked_into):
        return True
    return use.args is not Handed.KEPT and not (
        len(call.args) <= _MOST_SIZES and all(_is_surely_plain(arg, uses) for arg in call.args)
    )


def _telling_parts(node: Node, uses: _Uses) -> Iterator[Node]:
    """Return the parts of a node, but for a function which says nothing about what it makes."""
    for part in parts_of(node):
        if isinstance(node, Call) and part is node.function and isinstance(part, Global):
            use = uses[id(part)]
            if use is not None and use.args is Handed.JUDGED:
                continue
        yield part


@dataclass(eq=False, repr=False, slots=True)
class _Judge:
    """Looks at the calls of one pickle, each in a time that does not grow with what they share.

    `uses` has what may be done with its globals, by their ids; `tainted` the ids of what has
    something in it that is not plain, of what is looked into (None: all is plain); `has_code`:
    there is a name that no file should have; `made_of_plain`
    what is made by functions whatever plain things they are handed, by function and opcode; `known`
    what was found in large nodes, by what was asked.
    """

    uses: _Uses
    tainted: Collection[int] | None
    has_code: bool
    made_of_plain: dict[tuple[int, str], Use] = field(default_factory=dict)
    known: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def runs(self, call: Call) -> bool:
        """Whether a plain `torch.load` would do more than make a value of this call."""
        use = self.made_of_plain.get((id(call.function), call.opcode)) or self.made_by(call)
        if use is None:
            return True
        return bool(call.effects) and not self.takes(use, call)

    def is_tainted(self, node: Node) -> bool:
        """Whether something in a node is not plain."""
        return self.tainted is not None and id(node) in self.tainted

    def made_by(self, call: Call) -> Use | None:
        """Return what may be done with the result of a call; None where the call would run."""
        callee = class_of(call.function)
        if callee is None:  # what another call gives
            return None
        use = self.uses[id(callee)]
        if use is not None and use.args is Handed.JUDGED:
            return self.judged(full_name(callee), call) if call.keywords is None else None
        found = self.made(callee, call.args, call.keywords, opcode=call.opcode)
        if found and self.tainted is None:
            self.made_of_plain[id(call.function), call.opcode] = found
        return found

    def made(
        self, callee: Global, args: Node, keywords: Node = None, *, start: int = 0,
        opcode: str = "NEWOBJ",
    ) -> Use | None:  # fmt: skip
        """Return the same of a global that is called with `args`, from their number `start` on."""
        use = self.uses[id(callee)]
        if use is None or use.args in (Handed.NOTHING, Handed.JUDGED):
            return None
        if use is FOREIGN:
            is_made = is_class(callee.name, is_new=opcode.startswith("NEWOBJ"))
        elif use.only_new and opcode == "REDUCE":  # `OBJ` makes a class's object in the same way
            is_made = False
        elif full_name(callee) == "collections.defaultdict" and self.is_tainted(args):
            # whoever looks a key up calls the factory
            is_made = not self.is_tainted(args[start]) and self.fit(use.args, args, start + 1)
        else:
            is_made = not self.is_tainted(keywords) and self.fit(use.args, args, start)
        return use if is_made and not self.is_handed_code(args) else None

    def judged(self, name: str, call: Call) -> Use | None:
        """Return the same of a function that makes what its arguments say."""
        found = None
        match name, call.args:
            case "copyreg._reconstructor", (Global() as kind, Global() as base, _):
                known = _BASES.get(full_name(base))
                if known is not None and self.fit(known, call.args, 2):
                    found = self.made(kind, ())
            case "copyreg.__newobj__", (Global() as kind, *_):
                found = self.made(kind, call.args, start=1)
            case "copyreg.__newobj_ex__", (Global() as kind, tuple() as args, Dict() as keywords):
                found = self.made(kind, args, keywords)
            case "torch._tensor._rebuild_from_type" | "torch._tensor._rebuild_from_type_v2", (
                Global() as function, Global() as kind, tuple() as args, state,
            ):  # fmt: skip
                found = self.typed_tensor(function, kind, args, state)
            case "builtins.type", (only,) if only is None or _is_single(only):
                found = Use()
            case "_operator.getitem" | "operator.getitem", (Global() as kind, types):
                is_typing = kind.module == "typing" and self.uses[id(kind)] is not None
                found = Use() if is_typing and self.are_types(types) else None
        return found

    def typed_tensor(
        self, function: Global, kind: Global, args: tuple[Node, ...], state: Node
    ) -> Use | None:
        """Return what may be done with a tensor of a class; None where to rebuild it would run."""
        use = self.uses[id(kind)]
        is_known = is_plain(use) or (use is FOREIGN and is_class(kind.name, is_new=True))
        if not is_known or not is_plain(self.uses[id(function)]):
            return None
        is_wrapper = full_name(function) == "torch._utils._rebuild_wrapper_subclass"
        of_kind = is_wrapper and isinstance(args[0] if args else None, Global)
        start = 1 if of_kind and full_name(args[0]) == full_name(kind) else 0
        fits = self.fit(Handed.PLAIN, args, start) and (
            not self.is_tainted(state) or self.fits_state(ATTRIBUTES, state)
        )
        return Use() if fits else None

    def are_types(self, node: Node) -> bool:
        """Whether these are types to be written in brackets; of a text, code would be compiled."""
        parts = node if isinstance(node, tuple) else (node,)
        return self.learn(
            ("types", id(node)),
            lambda: all(
                one is None
                or (isinstance(one, Global) and self.uses[id(one)] is not None)
                or is_called(one, "_operator", "getitem")
                for part in parts
                for one in (part if isinstance(part, list) else (part,))
            ),
        )

    def learn(self, asked: tuple[object, ...], answer: Callable[[], bool]) -> bool:
        """Return the answer to what was asked about a node, which is looked for once."""
        if asked not in self.known:
            self.known[asked] = answer()
        return self.known[asked]

    def is_handed_code(self, args: tuple[Node, ...]) -> bool:
        """Whether one of these is a name that no file should have."""
        return self.has_code and self.learn(
            ("code", id(args)),
            lambda: any(isinstance(arg, Global) and self.uses[id(arg)] is None for arg in args),
        )

    def fit(self, handed: Handed, args: tuple[Node, ...], start: int) -> bool:
        """Whether a call can be handed these, from their number `start` on."""
        if handed is Handed.KEPT or not self.is_tainted(args):
            return True
        if handed in (Handed.ITEMS, Handed.PAIRS) and len(args) > start:
            if not self.can_be_iterated(args[start], handed):
                return False
            start += 1
        return not self.learn(
            ("tainted", id(args), start),
            lambda: any(self.is_tainted(args[place]) for place in range(start, len(args))),
        )

    def can_be_iterated(self, value: Node, handed: Handed) -> bool:
        """Whether what iterates over this runs Python's own code; of pairs, over each of them."""
        if not self.is_tainted(value) or isinstance(value, Dict):
            return True
        if handed is Handed.ITEMS:
            return isinstance(value, (list, tuple, Set))
        return isinstance(value, (list, tuple)) and self.learn(
            ("pairs", id(value)),
            lambda: all(
                not self.is_tainted(pair) or isinstance(pair, (list, tuple)) for pair in value
            ),
        )

    def takes(self, use: Use, call: Call) -> bool:
        """Whether an object may be given what it is: items, and then one state.

        Where a state has been set, what is set next can be taken by a method that is in it.
        """
        *items, last = call.effects
        if not isinstance(last, Built):
            items.append(last)
        if not all(self.takes_items(use, call, effect) for effect in items):
            return False
        if not isinstance(last, Built):
            return True
        is_looked_up = use is FOREIGN and any(
            _has_key(effect.entries, _LOOKED_UP) for effect in items if isinstance(effect, SetItems)
        )
        return not is_looked_up and self.fits_state(use, last.state)

    def takes_items(self, use: Use, call: Call, effect: Effect) -> bool:
        """Whether an object may be given these items; what has no keys converts one to a number."""
        if isinstance(effect, Built) or not use.takes_items:
            return False
        if use is not FOREIGN:
            return isinstance(effect, SetItems) == (use.args is Handed.PAIRS)
        if isinstance(effect, SetItems):
            return all(not isinstance(key, Call) or self.is_value(key) for key, _ in effect.entries)
        return not self.is_tainted(call.args)  # its `append` can be an attribute from there

    def is_value(self, call: Call) -> bool:
        """Whether what a call makes is of a class that is known."""
        callee = class_of(call.function)
        return callee is not None and is_plain(self.uses[id(callee)])

    def fits_state(self, use: Use, state: Node) -> bool:
        """Whether BUILD may be done with this state."""
        match use.state, state:
            case Handed.PLAIN, _:
                return not self.is_tainted(state)
            case Handed.PARTIAL, (_, tuple(), Dict() | None, Dict() | None):
                return True
            case Handed.MODULE, Dict():
                return self.are_attributes(state) and self.is_module(state)
            case Handed.KEPT, Dict() | (_, _):
                parts = state if isinstance(state, tuple) else (state,)
                return all(
                    self.are_attributes(part)
                    if isinstance(part, Dict)
                    else use is FOREIGN or part is None
                    for part in parts
                )
        return use is FOREIGN

    def are_attributes(self, state: Dict) -> bool:
        """Whether nothing in here is called once it is an attribute."""
        return not self.learn(("looked up", id(state)), lambda: _has_key(state.entries, _LOOKED_UP))

    def is_module(self, state: Dict) -> bool:
        """Whether what a module looks into are mappings of Python's own."""
        return self.learn(
            ("module", id(state)),
            lambda: all(
                isinstance(value, (Dict, NoneType))
                or is_called(value, "collections", "OrderedDict")
                for key, value in state.entries
                if isinstance(key, str) and key in _MODULE_PARTS
            ),
        )

    def functions_in(self, calls: Iterable[Call]) -> Iterator[Global]:
        """Return the functions that these calls are handed, or may take out of what they are."""
        stack: list[Node] = list(calls)
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            if type(node) in PLAIN or id(node) in seen:
                continue
            seen.add(id(node))
            if not isinstance(node, Global):
                stack += _telling_parts(node, self.uses)
                continue
            use = self.uses[id(node)]
            if not is_plain(use) and not (use is FOREIGN and is_class(node.name, is_new=False)):
                yield node


def _is_single(node: Node) -> bool:
    """Whether this is one of Python's constants that pickles name."""
    names = ("builtins.Ellipsis", "builtins.NotImplemented")
    return isinstance(node, Global) and full_name(node) in names


def _has_key(entries: Iterable[tuple[Node, Node]], keys: Collection[str]) -> bool:
    return any(isinstance(key, str) and key in keys for key, _ in entries)
