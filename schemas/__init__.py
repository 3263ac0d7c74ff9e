"""Contracts: job file, identities, work unit, tokenizer protocol, shard, ledger rows, errors.

Imports nothing of ours; no torch, no ray, no I/O.
"""

if __name__ != "tokenmill.schemas":
    # Two module objects of one class make `except` and isinstance miss: one name only.
    raise ImportError(
        f"import tokenmill.schemas, not {__name__}: the top-level folder is reached through the "
        "package; run from the repository root or `pip install -e .`"
    )
