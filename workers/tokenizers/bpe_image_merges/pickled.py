"""The merge table that Being-VL-0.5 saves: a pickle of [((a, b), new), …], read without pickle.

A pickle is a program. This reads its opcodes and carries out the dozen that build lists, tuples
and integers; any other (every global, call, persistent id or buffer) is refused by name, and
nothing of the standard unpickler runs, whose memo alone can be told to take 32 GiB.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import TokenizerError

MAX_BYTES = 64 << 20  # a million rules take about 20 MiB
_MARK = object()
_IGNORED = {"PROTO", "FRAME"}
_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG"}
_STORES = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCHES = {"GET", "BINGET", "LONG_BINGET"}


def read_pickled(data: bytes, *, where: str) -> tuple[int, NDArray[np.int32]]:
    """(vocab, rules int32[R, 2]) of the bytes of a file. Raises TokenizerError."""
    if len(data) > MAX_BYTES:
        raise _refuse(where, f"{len(data):,} bytes, and {MAX_BYTES:,} are the most")
    try:
        found = _Machine().run(data)
    except _NotPlain as why:
        raise _refuse(where, str(why)) from None
    except (ValueError, IndexError, TypeError, KeyError, RecursionError) as error:
        raise _refuse(where, f"not a whole pickle ({error})") from None
    return _rules(found, where)


def _rules(found: Any, where: str) -> tuple[int, NDArray[np.int32]]:
    rows = []
    if not isinstance(found, list) or not found:
        raise _refuse(where, "it holds no list of rules")
    for number, rule in enumerate(found):
        match rule:
            case ((int(a), int(b)), int(new)) if type(rule) is tuple:
                rows.append((a, b, new))
            case _:
                raise _refuse(where, f"rule {number} is not ((a, b), new)")
    vocab = rows[0][2]
    for number, row in enumerate(rows):
        if row[2] != vocab + number or not all(0 <= x < 1 << 31 for x in row):
            raise _refuse(where, f"rule {number} makes the id {row[2]}, not {vocab + number}")
    return vocab, np.array(rows, np.int32)[:, :2].copy()


class _NotPlain(Exception):
    pass


class _Machine:
    """A stack machine for the opcodes that plain data needs."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._act: dict[str, Callable[[], None]] = {
            "MARK": lambda: self._stack.append(_MARK),
            "EMPTY_LIST": lambda: self._stack.append([]),
            "LIST": lambda: self._stack.append(self._items()),
            "TUPLE": lambda: self._stack.append(tuple(self._items())),
            "TUPLE2": lambda: self._stack.append(self._last(2)),
            "APPEND": self._append,
            "APPENDS": self._appends,
            "MEMOIZE": lambda: self._memo.update({len(self._memo): self._stack[-1]}),
        }

    def run(self, data: bytes) -> Any:
        for opcode, given, _ in pickletools.genops(data):
            name, argument = opcode.name, cast(int, given)
            if name == "STOP":
                return self._stack.pop()
            if name in _INTEGERS:
                self._stack.append(int(argument))
            elif name in _STORES:
                self._memo[int(argument)] = self._stack[-1]
            elif name in _FETCHES:
                self._stack.append(self._memo[int(argument)])
            elif name in self._act:
                self._act[name]()
            elif name not in _IGNORED:
                raise _NotPlain(f"it holds the opcode {name}, which no plain list of rules needs")
        raise ValueError("it does not end")

    def _items(self) -> list[Any]:
        """What lies above the last mark; the mark goes too."""
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _last(self, n: int) -> tuple[Any, ...]:
        items = tuple(self._stack[-n:])
        if len(items) < n or any(item is _MARK for item in items):
            raise ValueError("too few items")
        del self._stack[-n:]
        return items

    def _append(self) -> None:
        item = self._stack.pop()
        self._list().append(item)

    def _appends(self) -> None:
        items = self._items()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self._stack[-1], list):
            raise ValueError("an item is appended to no list")
        return self._stack[-1]


def _refuse(where: str, why: str) -> TokenizerError:
    return TokenizerError(
        "this is not a merge table of Being-VL-0.5",
        where=where,
        why=why,
        remedy="give the pickle that its save routine wrote, or one of our .safetensors tables",
    )
