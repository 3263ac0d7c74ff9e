"""Tokens at rest: access to local and object stores, shards, ledger, snapshots, queries, rows.

May import schemas; never ray, never torch.
"""

if __name__ != "tokenmill.store":
    # Two module objects of one class make `except` and isinstance miss: one name only.
    raise ImportError(
        f"import tokenmill.store, not {__name__}: the top-level folder is reached through the "
        "package; run from the repository root or `pip install -e .`"
    )
