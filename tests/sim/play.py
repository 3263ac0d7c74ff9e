"""One schedule from its first file to the last check."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.chance import Chance, shrink
from sim.checks import check_all, check_finished, check_named, check_swept, require
from sim.driver import Driver
from sim.world import DAY, Parts, World, without_clocks


@dataclass(kw_only=True, slots=True)
class Played:
    """What a schedule came to. error: "" where everything held."""

    choices: list[int]
    steps: int = 0
    samples: int = 0
    injected: dict[str, int] = field(default_factory=dict)
    error: str = ""
    trace: list[str] = field(default_factory=list)
    detail: str = ""


def play(chance: Chance, parts: Parts | None = None) -> Played:
    """Play and check one schedule. Every exception is a finding."""
    world = World(chance, parts or Parts())
    samples, error, detail = 0, "", ""
    with without_clocks(world):
        try:
            samples = _play(world)
        except Exception as found:  # noqa: BLE001 - whatever escapes is what we are looking for
            error = f"{type(found).__name__}: {found}"
            detail = traceback.format_exc()
    return Played(
        choices=chance.made,
        steps=world.steps,
        samples=samples,
        injected=world.injected,
        error=error,
        trace=world.trace,
        detail=detail,
    )


def _play(world: World) -> int:
    checked: set[int] = set()
    world.start_driver()
    while True:
        while not all(d.over for d in world.drivers):
            world.act()
            for number, driver in enumerate(world.drivers):
                if driver.over and number not in checked:
                    checked.add(number)
                    check_finished(world, driver)
        if world.budget <= 0 or len(world.drivers) >= 4 or world.chance.pick(2) == 0:
            break
        world.start_driver()
    return _end(world)


def _end(world: World) -> int:
    """No more faults: one run finishes everything, the next one finds nothing to do (G3)."""
    world.enabled = frozenset()
    world.bad_node = world.slow_node = -1
    world.down_until = world.overlap = 0
    last = _run(world)
    require(last.exit_code == 0, "G4", f"the last run ended with {last.exit_code}: {last.why}")
    check_finished(world, last)
    samples = check_all(world)
    while world.zombies and world.chance.pick(4):
        world.act()
    world.zombies.clear()
    before = len(world.log.commits)
    world.clock += 8 * DAY
    world.vacuum()
    _run(world)
    require(len(world.log.commits) == before, "G3", "a run over unchanged input committed")
    check_swept(world)
    check_named(world)
    return samples


def _run(world: World) -> Driver:
    driver = world.start_driver(calm=True)
    while not driver.over:
        world.act()
    return driver


def play_seed(seed: int, parts: Parts | None = None) -> Played:
    return play(Chance(seed), parts)


def replay(choices: Sequence[int], parts: Parts | None = None) -> Played:
    return play(Chance(choices=choices), parts)


def shrunk(found: Played, parts: Parts | None = None, *, tries: int = 2000) -> Played:
    """The simplest schedule found that breaks the same guarantee in the same way."""
    kind = found.error.split(":")[:2]

    def fails(choices: list[int]) -> bool:
        return replay(choices, parts).error.split(":")[:2] == kind

    return replay(shrink(found.choices, fails, tries=tries), parts)
