"""Whether workers fit on nodes: CPUs, whole and fractional GPUs, labels. Pure arithmetic.

Ray places actors; this only foresees what it can place, so that we ask for no more. First fit,
the greediest needs first: good to a worker or two of the best there is, and an actor too many
merely waits for its node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Node:
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Of one worker. gpus: a fraction shares a GPU with others; 1 or more are whole ones."""

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


class _Room:
    """What is left of a node. A fraction of a GPU must come out of one GPU."""

    def __init__(self, node: Node) -> None:
        self.labels = node.labels
        self.cpus = node.cpus
        whole = int(node.gpus + _EPSILON)
        rest = node.gpus - whole
        self.gpus = [1.0] * whole + ([rest] if rest > _EPSILON else [])
        self.plain = not self.gpus

    def take(self, need: Need) -> bool:
        if need.cpus > self.cpus + _EPSILON:
            return False
        if any(self.labels.get(name) != value for name, value in need.labels.items()):
            return False
        if not self._take_gpus(need.gpus):
            return False
        self.cpus -= need.cpus
        return True

    def _take_gpus(self, wanted: float) -> bool:
        if wanted <= _EPSILON:
            return True
        if wanted < 1 - _EPSILON:
            # the fullest GPU that still has room, so that whole ones stay whole
            fitting = [(free, i) for i, free in enumerate(self.gpus) if free >= wanted - _EPSILON]
            if not fitting:
                return False
            free, index = min(fitting)
            self.gpus[index] = free - wanted
            return True
        count = round(wanted)
        whole = [i for i, free in enumerate(self.gpus) if free >= 1 - _EPSILON]
        if len(whole) < count:
            return False
        for index in whole[:count]:
            self.gpus[index] = 0.0
        return True


def fits(nodes: Sequence[Node], needs: Iterable[Need]) -> bool:
    """Whether all needs find a place at once."""
    # those without GPUs first: what needs none stays off them where it can
    rooms = sorted(map(_Room, nodes), key=lambda room: not room.plain)
    ordered = sorted(needs, key=lambda n: (bool(n.labels), n.gpus, n.cpus), reverse=True)
    return all(any(room.take(need) for room in rooms) for need in ordered)
