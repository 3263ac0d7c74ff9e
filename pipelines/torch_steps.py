"""A loader as torch's kind of dataset. Imports torch: imported by tensors.py, when asked for."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info

from tokenmill.store.stream.batch import SequenceBatch
from tokenmill.store.stream.loader import Loader


class Steps(IterableDataset[SequenceBatch]):
    """Workers take every n-th step: a DataLoader of any number of workers gives the same batches in
    the same order. Picklable, for workers that are spawned."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[SequenceBatch]:
        worker = get_worker_info()
        if worker is None:
            return self._loader.steps()
        return self._loader.steps(worker.id, worker.num_workers)
