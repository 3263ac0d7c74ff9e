"""The loader: batches of token sequences from a pinned snapshot, for one rank of a training run.

    loader = tokenmill.open(uri).loader("text", batch=64, sequence=4096, seed=7)
    loader.load_state_dict(saved)             # after a restart, on any number of ranks
    for batch in loader:
        train(batch.tokens, batch.loss_mask)
        saved = loader.state_dict()

Every number here is arithmetic over the snapshot (plan, mixture, blocks, ranks); this module joins
it with threads that read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import json_hash
from tokenmill.store.cache import LocalCache
from tokenmill.store.stream.batch import SequenceBatch
from tokenmill.store.stream.chunks import ChunkMaker, Making
from tokenmill.store.stream.held import HeldBlocks, Key, patiently
from tokenmill.store.stream.mapped import open_rows
from tokenmill.store.stream.mixture import Mixture, Stretch
from tokenmill.store.stream.opened import Block, Ints
from tokenmill.store.stream.plan import Request, make_plan
from tokenmill.store.stream.ranks import Tail, share, step_count
from tokenmill.store.stream.state import Era, LoaderState
from tokenmill.store.stream.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenmill.store.dataset import Dataset

# A chunk is gathered at once: enough tokens that the calls cost nothing, few enough for the caches.
CHUNK_TOKENS = 1 << 20
CHUNK_STEPS = 64


class Tensors(Protocol):
    """What turns numpy batches into another library's; handed down by the public door."""

    def convert(self, batch: SequenceBatch) -> SequenceBatch: ...

    def iterable(self, loader: Loader) -> Any:
        """The loader as the library's own kind of dataset, whose workers share its steps."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What does not change the sequence, or is in the state beside the request.

    epochs: None goes on for ever. steps: the run ends there. patience: seconds that a silent store
    is waited for.
    """

    batch: int
    seed: int
    rank: int
    world: int
    epochs: int | None
    steps: int | None
    tail: Tail
    threads: int
    patience: float
    making: Making


class Loader:
    """Made by `Dataset.loader`. Iterating goes on from where the state stands."""

    def __init__(
        self,
        dataset: Dataset,
        request: Request,
        stretches: Sequence[Stretch],
        settings: Settings,
        *,
        vocabulary: Vocabulary | None = None,
        codes: Mapping[str, int],
        cache: LocalCache | None = None,
        tensors: Tensors | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.codes = dict(codes)
        self._dataset = dataset
        self._request = request
        self._stretches = tuple(stretches)
        self._settings = settings
        self._cache = cache
        self._tensors = tensors
        self._slot = 0
        self._eras: tuple[Era, ...] = ()
        self._enter(dataset, 0)

    def _enter(self, dataset: Dataset, slot: int) -> None:
        """From `slot` on, sequences come from this dataset's snapshot."""
        s = self._settings
        plan = patiently(
            lambda: make_plan(dataset, self._request, s.seed, max(1, s.threads), self._cache),
            s.patience,
        )
        self._dataset, self._plan = dataset, plan
        era = Era(slot=slot, snapshot=plan.snapshot, selection=plan.selection)
        self._eras = (*(e for e in self._eras if e.slot < slot), era)

    # -- what it is ---------------------------------------------------------------------------

    @property
    def snapshot(self) -> str:
        """Hash of the snapshot that it reads now."""
        return self._eras[-1].snapshot

    @property
    def sequences(self) -> tuple[int, ...]:
        """How many sequences an epoch of each part has."""
        return tuple(part.sequences for part in self._plan.parts)

    @property
    def step(self) -> int:
        """The next step."""
        return -(-self._slot // self._settings.batch)

    @property
    def last_step(self) -> int | None:
        """The step at which the run ends; None where it goes on for ever."""
        s, end = self._settings, self._end
        ends = [] if end is None else [step_count(end, s.batch, s.tail)]
        return min([*ends, *([] if s.steps is None else [s.steps])], default=None)

    @property
    def _end(self) -> int | None:
        """The first slot that does not exist."""
        if self._settings.epochs is None:
            return None
        return self._eras[-1].slot + self._settings.epochs * self.sequences[0]

    def __len__(self) -> int:
        """Steps that are left. Raises TypeError for a loader that goes on for ever."""
        if self.last_step is None:
            raise TypeError("this loader goes on for ever: give it epochs= or steps=")
        return max(0, self.last_step - self.step)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        s = self._settings
        return (
            f"<Loader {self._dataset.uri} snapshot {self.snapshot[:12]}: rank {s.rank} of "
            f"{s.world}, step {self.step} of {self.last_step or 'ever'}>"
        )

    # -- the state ----------------------------------------------------------------------------

    def state_dict(self, batch: SequenceBatch | None = None) -> dict[str, Any]:
        """JSON values; the same on every rank after the same step.

        batch: the last one that was trained on, where others count (a DataLoader's workers read
        ahead); by default the last one that iteration gave.
        """
        return self._state(self._slot if batch is None else batch.slot).as_dict()

    def _state(self, slot: int) -> LoaderState:
        s, r = self._settings, self._request
        return LoaderState(
            slot=slot,
            seed=s.seed,
            batch=s.batch,
            sequence=r.length or None,
            vocabulary=None if self.vocabulary is None else self.vocabulary.hash,
            schedule=json_hash([[st.start, *st.weights] for st in self._stretches]),
            order=r.hash(s.tail),
            eras=self._eras,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last step of the saved run, on the snapshot that it read.

        Raises JobError where this loader was made with another batch size, sequence length, seed,
        vocabulary, schedule, parts or tail; StoreError where the snapshot is gone.
        """
        saved = LoaderState.from_dict(state)
        saved.check_continues(self._state(0))
        last = saved.eras[-1]
        if last.snapshot != self.snapshot:
            self._enter(self._dataset.at(last.snapshot), last.slot)
        if self._plan.selection != last.selection:
            raise JobError(
                "the filters choose other shards than when the state was saved",
                where=self._dataset.uri,
                remedy="make the loader with the same pipelines and predicates",
            )
        self._eras, self._slot = saved.eras, saved.slot

    def advance(self, snapshot: str | None = None) -> int:
        """From the next step on, read another snapshot (by default the store's newest): its
        samples in a new order from their first epoch on. Recorded in the state; call it at the
        same step on every rank. -> the slot. Raises StoreError, JobError."""
        dataset = self._dataset.at(snapshot)
        slot = self.step * self._settings.batch
        if dataset.snapshot != self.snapshot:
            self._enter(dataset, slot)
            self._slot = slot
        return slot

    # -- batches ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[SequenceBatch]:
        """The steps that are left; the state moves on as they are given."""
        for batch in self.steps():
            self._slot = batch.slot
            yield batch

    def steps(self, worker: int = 0, workers: int = 1) -> Iterator[SequenceBatch]:
        """Every `workers`-th of the steps that are left, from the `worker`-th on, for processes
        that share them. Does not move the state."""
        last = self.last_step
        steps = _counting(self.step + worker, last, workers)
        threads = self._settings.threads
        if not threads:
            held = self._held(None)
            for chunk in _chunked(steps, self._chunk_steps()):
                yield from self._make(chunk, held)
            return
        with (
            ThreadPoolExecutor(threads, thread_name_prefix="tokenmill-loader") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="tokenmill-blocks") as ahead,
        ):
            yield from self._ahead(steps, pool, self._held(ahead))
            ahead.shutdown(wait=False, cancel_futures=True)

    def _ahead(
        self, steps: Iterator[int], pool: ThreadPoolExecutor, held: HeldBlocks
    ) -> Iterator[SequenceBatch]:
        """Chunks made by threads, given in order; the first one is a single step, soon there."""
        sizes = iter([1, max(1, self._chunk_steps() // 4)])
        waiting: deque[Future[list[SequenceBatch]]] = deque()
        try:
            while True:
                while len(waiting) <= self._settings.threads:
                    chunk = list(islice(steps, next(sizes, self._chunk_steps())))
                    if not chunk:
                        break
                    waiting.append(pool.submit(self._make, chunk, held))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _chunk_steps(self) -> int:
        s = self._settings
        width = s.making.width or self._typical_width()
        tokens = max(1, width * -(-s.batch // s.world))
        return int(min(CHUNK_STEPS, max(1, CHUNK_TOKENS // tokens)))

    def _typical_width(self) -> int:
        part = self._plan.parts[0].selection.spans
        known = part.samples > 0
        return int(part.tokens[known].sum() // max(1, part.samples[known].sum())) or 256

    def _held(self, ahead: ThreadPoolExecutor | None) -> HeldBlocks:
        capacity = sum(part.held(self._settings.world) for part in self._plan.parts)
        return HeldBlocks(self._open_block, capacity, ahead)

    def _open_block(self, key: Key) -> Block:
        part, epoch, number = key
        access, cache = self._dataset.access, self._cache
        return patiently(
            lambda: self._plan.parts[part].open(
                epoch, number, lambda shard: open_rows(access, shard, cache)
            ),
            self._settings.patience,
        )

    def _make(self, steps: Sequence[int], held: HeldBlocks) -> list[SequenceBatch]:
        s, era, end = self._settings, self._eras[-1].slot, self._end
        slots = [share(g, batch=s.batch, rank=s.rank, world=s.world, end=end) for g in steps]
        after = [(g + 1) * s.batch if end is None else min((g + 1) * s.batch, end) for g in steps]
        maker = ChunkMaker(self._plan.parts, self._draws, held, s.making)
        batches = maker.make(list(zip(steps, after, strict=True)), [slot - era for slot in slots])
        convert = self._tensors.convert if self._tensors else _as_numpy
        return [convert(batch) for batch in batches]

    def _draws(self, local: Ints) -> tuple[Ints, Ints]:
        """(part, draw) of slots counted from the snapshot's first: the schedule goes by absolute
        slots, a new snapshot's draws begin anew."""
        era = self._eras[-1].slot
        stretches = _from(self._stretches, era)
        return Mixture(stretches, self._settings.seed).draws(local)

    # -- other libraries ----------------------------------------------------------------------

    def iterable_dataset(self) -> Any:
        """For `torch.utils.data.DataLoader(…, batch_size=None, num_workers=n)`: workers share the
        steps. Raises JobError for a loader of numpy arrays."""
        if self._tensors is None:
            raise JobError("this loader gives numpy arrays", remedy="make it with tensors='torch'")
        return self._tensors.iterable(self)


def _as_numpy(batch: SequenceBatch) -> SequenceBatch:
    return batch


def _counting(first: int, last: int | None, stride: int) -> Iterator[int]:
    step = first
    while last is None or step < last:
        yield step
        step += stride


def _chunked(steps: Iterable[int], size: int) -> Iterator[list[int]]:
    iterator = iter(steps)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _from(stretches: Sequence[Stretch], slot: int) -> list[Stretch]:
    """The stretches in force from `slot` on, numbered from there."""
    first = max(i for i, s in enumerate(stretches) if s.start <= slot)
    return [replace(s, start=max(0, s.start - slot)) for s in stretches[first:]]


Make = Callable[..., Loader]
