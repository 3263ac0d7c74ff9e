"""What runs on the driver: plan and coordinator (pure), the loop, two executors, verbs, CLI.

May import everything below it.
"""

if __name__ != "tokenmill.pipelines":
    # Two module objects of one class make `except` and isinstance miss: one name only.
    raise ImportError(
        f"import tokenmill.pipelines, not {__name__}: the top-level folder is reached through the "
        "package; run from the repository root or `pip install -e .`"
    )
