"""What runs beside the data: sources, tokenizers, the encode loop, the Ray actor that holds it.

May import schemas and store; ray in the actor module only.
"""

if __name__ != "tokenmill.workers":
    # Two module objects of one class make `except` and isinstance miss: one name only.
    raise ImportError(
        f"import tokenmill.workers, not {__name__}: the top-level folder is reached through the "
        "package; run from the repository root or `pip install -e .`"
    )
