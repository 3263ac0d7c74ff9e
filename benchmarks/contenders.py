"""One contender of benchmarks/text.py in a process of its own.

    contenders.py NAME SOURCE OUT TOKENIZER

Prints nothing but its token count. The bare loops are the least that does the same work: two
processes, Parquet in batches of 1,000 documents, the engine, raw ids and lengths to files.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

WORKERS = 2
BATCH = 1000
Encode = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


def fast(tokenizer: str) -> Encode:
    import fastokens  # noqa: PLC0415 - each contender loads only its own engine

    engine = fastokens.Tokenizer.from_file(tokenizer)

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = engine.encode_batch_flat(texts, False)
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64))

    return encode


def reference(tokenizer: str) -> Encode:
    from tokenizers import Tokenizer  # noqa: PLC0415 - as above

    engine = Tokenizer.from_file(tokenizer)

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        made = [e.ids for e in engine.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in made], np.uint64)
        return np.fromiter((i for ids in made for i in ids), np.uint32), lengths

    return encode


ENGINES = {"bare-fast": fast, "bare-reference": reference}


def _loop(name: str, files: list[str], out: str, tokenizer: str) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    encode = ENGINES[name](tokenizer)
    for path in files:
        stem = Path(out) / Path(path).name
        with (
            stem.with_suffix(".bin").open("wb") as ids_file,
            stem.with_suffix(".idx").open("wb") as index_file,
        ):
            batches = pq.ParquetFile(path).iter_batches(BATCH, columns=["text"], use_threads=False)
            for batch in batches:
                ids, lengths = encode(batch.column(0).to_pylist())
                ids_file.write(ids.astype(np.uint16).tobytes())  # as narrow as the shards' ids
                index_file.write(lengths.astype(np.int32).tobytes())


def bare(name: str, source: str, out: str, tokenizer: str) -> int:
    files = sorted(str(p) for p in Path(source).glob("*.parquet"))
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=_loop, args=(name, files[k::WORKERS], out, tokenizer))
        for k in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed")
    return sum(p.stat().st_size for p in Path(out).glob("*.bin")) // 2


def datatrove(source: str, out: str, tokenizer: str) -> int:
    from datatrove.executor import LocalPipelineExecutor  # noqa: PLC0415 - its own environment
    from datatrove.pipeline.readers import ParquetReader  # noqa: PLC0415
    from datatrove.pipeline.tokens import DocumentTokenizer  # noqa: PLC0415

    LocalPipelineExecutor(
        pipeline=[
            ParquetReader(source, batch_size=BATCH),
            DocumentTokenizer(
                f"{out}/tokens",
                tokenizer_name_or_path=tokenizer,
                eos_token=None,
                shuffle_documents=False,  # the faster of its two ways
                local_working_dir=f"{out}/scratch",
                save_final_metadata=False,
                batch_size=BATCH,
            ),
        ],
        tasks=2 * WORKERS,
        workers=WORKERS,
        logging_dir=f"{out}/logs",
        start_method="spawn",
    ).run()
    return sum(p.stat().st_size for p in Path(out, "tokens").glob("*.ds")) // 2


def main(name: str, source: str, out: str, tokenizer: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    Path(out).mkdir(parents=True)
    if name == "datatrove":
        print(datatrove(source, out, tokenizer))
    else:
        print(bare(name, source, out, tokenizer))


if __name__ == "__main__":
    main(*sys.argv[1:])
