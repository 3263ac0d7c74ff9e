"""What any plug-in must do, checked through the protocols of schemas.tokenizer alone.

Every check is a function that returns what it saw, raises `Broken` with what is wrong, or raises
`NotApplicable`. The subject is loaded here and once more in a child process.
"""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokenmill.schemas.errors import SampleError, TokenmillError
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    ClaimsLossless,
    Decodes,
    Encoded,
    FlatTokenizer,
    HasOracle,
    Piece,
    Window,
)
from tokenmill.workers.batching import Batcher
from tokenmill.workers.carrying import encode_carrying
from tokenmill.workers.conformance_subject import (
    Broken,
    NotApplicable,
    Subject,
    encode_one,
    output_fault,
    same,
)

_CHILD_SECONDS = 600  # models of several GB take minutes to load
_SHORT = "a"
_NOT_TEXT: tuple[Any, ...] = (b"\xff\xfe\x00", b"caf\xc3", "a\ud800b")


def _descriptor(subject: Subject) -> str:
    """Before and after loading it is the same plug-in; loading may only complete it."""
    before, after = subject.described, subject.tokenizer.descriptor
    for part in ("name", "modality", "ids_revision", "fields", "prepare_in"):
        if getattr(before, part) != getattr(after, part):
            raise Broken(f"describe() and the loaded descriptor differ in {part}")
    if [o.name for o in before.outputs] != [o.name for o in after.outputs] or not after.outputs:
        raise Broken("describe() and the loaded descriptor differ in their outputs")
    if subject.tokenizer.budget.cost < 1 or subject.tokenizer.budget.windows < 1:
        raise Broken("the batch budget admits nothing")
    return ", ".join(f"{o.name}: {o.dtype}{list(o.axes)}" for o in after.outputs)


def _output(subject: Subject) -> str:
    """Names, dtypes, axes and ranges of what comes out are those of the descriptor."""
    specs = {o.name: o for o in subject.tokenizer.descriptor.outputs}
    for n, encoding in subject.encoded:
        if encoding.keys() != specs.keys():
            raise Broken(f"{subject.name(n)}: outputs {sorted(encoding)}, not {sorted(specs)}")
        for name, one in encoding.items():
            fault = output_fault(one, specs[name])
            if fault:
                raise Broken(f"{subject.name(n)}, output {name}: {fault}")
    return f"{len(subject.encoded)} encodings"


def _determinism(subject: Subject) -> str:
    again = [encode_one(subject.tokenizer, fields) for fields in subject.samples]
    fresh = subject.cls.load(subject.checkpoint, subject.config)
    anew = [encode_one(fresh, fields) for fields in subject.samples]
    for n, result in enumerate(subject.results):
        if not same(result, again[n]):
            raise Broken(f"{subject.name(n)}: other ids the second time")
        if not same(result, anew[n]):
            raise Broken(f"{subject.name(n)}: other ids after loading again")
    return f"{len(subject.samples)} samples, three times"


def _batches(subject: Subject) -> str:
    """All windows at once, and shuffled, give every sample what it gets alone (G6, G8)."""
    preparer = subject.tokenizer.preparer()
    of_sample = [
        [(n, window) for window in preparer.prepare(subject.samples[n], np.random.default_rng(0))]
        for n, _ in subject.encoded
    ]
    if not of_sample:
        raise NotApplicable("no sample could be encoded")
    # samples change places; the windows of one stay in order, as the contract promises
    mixed = [of_sample[i] for i in np.random.default_rng(1).permutation(len(of_sample))]
    for order, batch in (("all at once", of_sample), ("shuffled", mixed)):
        _compare_batches(subject, order, [held for one in batch for held in one])
    return f"{sum(map(len, of_sample))} windows, in order and shuffled"


def _compare_batches(subject: Subject, order: str, batch: Sequence[tuple[int, Window]]) -> None:
    carries: dict[int, Any] = {}
    found: dict[int, list[Piece]] = {}
    for group in _buckets(batch):
        try:
            pieces = encode_carrying(subject.tokenizer.encode, group, carries)
        except ValueError as error:
            raise Broken(f"{len(group)} windows, and as many pieces are wanted: {error}") from None
        for (n, _), piece in zip(group, pieces, strict=True):
            found.setdefault(n, []).append(piece)
    for n, joined in found.items():
        if not same(subject.tokenizer.join(joined), subject.results[n]):
            raise Broken(f"{subject.name(n)}: other ids {order} than alone")


def _buckets(batch: Sequence[tuple[int, Window]]) -> Iterator[list[tuple[int, Window]]]:
    """Batches as a worker would make them: by bucket, each sample's windows in order."""
    batcher: Batcher[tuple[int, Window]] = Batcher(BatchBudget(cost=1 << 62, windows=1 << 20))
    for n, window in batch:
        yield from batcher.add((n, window), sample=n, bucket=window.bucket, cost=window.cost)
    yield from batcher.flush()


def _flat(subject: Subject) -> str:
    """encode_flat, in order, reversed and with a bad value in between, equals the generic path."""
    tokenizer = subject.tokenizer
    if not isinstance(tokenizer, FlatTokenizer):
        raise NotApplicable("no encode_flat")
    role = subject.described.fields[0]
    output = tokenizer.descriptor.outputs[0].name
    count = len(subject.samples)
    for order in (list(range(count)), list(range(count))[::-1]):
        flat = tokenizer.encode_flat([subject.samples[n][role] for n in order])
        if len(flat.offsets) != count + 1 or flat.offsets[0] != 0:
            raise Broken(f"{len(flat.offsets)} offsets for {count} samples")
        if flat.offsets[-1] != len(flat.values) or np.any(np.diff(flat.offsets) < 0):
            raise Broken("the offsets do not cut the values into samples")
        for at, n in enumerate(order):
            ids = flat.values[flat.offsets[at] : flat.offsets[at + 1]]
            result = flat.faults.get(at) or {output: Encoded(ids=ids, shape=ids.shape)}
            if not same(result, subject.results[n]):
                raise Broken(f"{subject.name(n)}: encode_flat differs from prepare, encode, join")
            if at in flat.faults and len(ids):
                raise Broken(f"{subject.name(n)}: at fault, and yet {len(ids)} tokens")
    return f"{count} samples, in both orders"


def _golden(subject: Subject) -> str:
    tokenizer = subject.tokenizer
    if not isinstance(tokenizer, HasOracle):
        raise NotApplicable("the plug-in offers no independent ids")
    compared = 0
    for n, encoding in subject.encoded:
        golden = tokenizer.oracle(subject.samples[n])
        if golden is None:
            continue
        if not same(golden, encoding):
            raise Broken(f"{subject.name(n)}: other ids than the independent implementation")
        compared += 1
    return f"{compared} samples equal the independent implementation"


def _prefix(subject: Subject) -> str:
    """A sequence that may be cut anywhere decodes, cut, to the beginning of the whole."""
    tokenizer = subject.tokenizer
    output = tokenizer.descriptor.outputs[0]
    if not output.prefix_cut:
        raise NotApplicable("not declared")
    if subject.described.modality != "text" or not isinstance(tokenizer, Decodes):
        raise NotApplicable("only decoded text can be compared with its beginning")
    for n, encoding in subject.encoded:
        ids = encoding[output.name].ids
        whole = tokenizer.decode(encoding)
        for cut in {len(ids) // 2, max(len(ids) - 1, 0), min(len(ids), 3)}:
            part = tokenizer.decode({output.name: Encoded(ids=ids[:cut], shape=(cut,))})
            if not whole.startswith(part.rstrip("\ufffd")):
                raise Broken(f"{subject.name(n)}: its first {cut} ids decode to another beginning")
    return f"{len(subject.encoded)} sequences, cut in three places"


def _lengths(subject: Subject) -> str:
    """Empty, short and long samples get ids or a reason, nothing else."""
    if not subject.samples:
        raise NotApplicable("the plug-in offers no examples")
    refused = [r for r in subject.results if isinstance(r, SampleError)]
    for fault in refused:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fault.reason):
            raise Broken(f"the reason {fault.reason!r} is not kebab-case")
    if len(refused) == len(subject.samples):
        raise Broken(f"every sample was refused, the first with {refused[0].reason}")
    return f"{len(subject.encoded)} encoded, {len(refused)} refused with a reason"


def _bad_values(subject: Subject) -> str:
    """Values that are no text are refused alone: their neighbours keep their ids (G9)."""
    if subject.described.modality != "text":
        raise NotApplicable("not a text tokenizer")
    tokenizer, role = subject.tokenizer, subject.described.fields[0]
    for value in _NOT_TEXT:
        if not isinstance(encode_one(tokenizer, {role: value}), SampleError):
            raise Broken(f"{value!r} was encoded")
    if isinstance(tokenizer, FlatTokenizer):
        good = tokenizer.encode_flat([_SHORT, _SHORT])
        mixed = tokenizer.encode_flat([_SHORT, *_NOT_TEXT, _SHORT])
        if set(mixed.faults) != set(range(1, len(_NOT_TEXT) + 1)):
            raise Broken(f"encode_flat put the faults at {sorted(mixed.faults)}")
        if not np.array_equal(good.values, mixed.values):
            raise Broken("bad values changed the ids of their neighbours")
    return f"{len(_NOT_TEXT)} values refused"


def _round_trip(subject: Subject) -> str:
    tokenizer = subject.tokenizer
    if not isinstance(tokenizer, Decodes):
        raise NotApplicable("no decode")
    if subject.described.modality != "text":
        for _, encoding in subject.encoded:
            tokenizer.decode(encoding)
        return f"{len(subject.encoded)} decoded; media are not compared"
    role, changed = subject.described.fields[0], []
    for n, encoding in subject.encoded:
        if tokenizer.decode(encoding) != subject.samples[n][role]:
            changed.append(n)
    lossless = isinstance(tokenizer, ClaimsLossless) and tokenizer.lossless
    if changed and lossless:
        raise Broken(f"{subject.name(changed[0])} comes back changed: claimed to be lossless")
    if changed:
        return f"{len(changed)} of {len(subject.encoded)} come back changed; none is promised"
    return f"{len(subject.encoded)} come back as they were"


def _preparer(subject: Subject) -> str:
    """It crosses into a child process and still makes the same windows."""
    preparer = subject.tokenizer.preparer()
    copy = pickle.loads(pickle.dumps(preparer))  # noqa: S301 - our own bytes, just pickled
    for n, _ in subject.encoded:
        one, two = (
            list(p.prepare(subject.samples[n], np.random.default_rng(0))) for p in (preparer, copy)
        )
        if not one or len(one) != len(two):
            raise Broken(f"{subject.name(n)}: {len(one)} windows, {len(two)} after pickling")
        for a, b in zip(one, two, strict=True):
            if a.arrays.keys() != b.arrays.keys() or not all(
                np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays
            ):
                raise Broken(f"{subject.name(n)}: other windows after pickling")
            if a.cost < 1:
                raise Broken(f"{subject.name(n)}: a window of cost {a.cost}")
    return f"{len(subject.encoded)} samples"


def _identity(subject: Subject) -> str:
    """Space and recipe are well formed and the same in another process and another load."""
    identity = subject.tokenizer.identity()
    if not re.fullmatch(r"[0-9a-f]{64}", identity.space):
        raise Broken(f"the space {identity.space!r} is not 64 hex digits")
    if identity.parts.get("ids_revision") != subject.described.ids_revision:
        raise Broken("parts must hold the descriptor's ids_revision")
    if json.loads(json.dumps(identity.parts)) != dict(identity.parts):
        raise Broken("parts are not JSON values")
    other = _in_child(subject)
    for name, here in (("space", identity.space), ("recipe", identity.recipe)):
        if other[name] != here:
            raise Broken(f"the {name} differs in another process: {here} and {other[name]}")
    return f"space {identity.space[:12]}, recipe {identity.recipe[:12]}"


def _in_child(subject: Subject) -> dict[str, str]:
    code = (
        "import sys; sys.path[:] = sys.argv[1:]; "
        "from tokenmill.workers.conformance_checks import child; child()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sys.path],
        input=pickle.dumps((subject.cls, subject.checkpoint, dict(subject.config))),
        capture_output=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise Broken(f"it cannot be loaded in another process: {' '.join(tail)}")
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child() -> None:
    """The other process of `_identity`: a pickled plug-in on stdin, its identity on stdout."""
    cls, checkpoint, config = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent wrote it
    try:
        identity = cls.load(checkpoint, config).identity()
    except TokenmillError as error:
        sys.exit(error.what)
    print(json.dumps({"space": identity.space, "recipe": identity.recipe}))


CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "descriptor": _descriptor,
    "preparer": _preparer,
    "lengths": _lengths,
    "output": _output,
    "golden ids": _golden,
    "determinism": _determinism,
    "batch invariance": _batches,
    "flat path": _flat,
    "bad values": _bad_values,
    "prefix rule": _prefix,
    "round trip": _round_trip,
    "identity": _identity,
}
