"""A simulator of whole runs: the real coordinator, planner, ledger, vacuum and snapshots, driven
through generated faults in one process, without a clock. `python -m sim --help` (PYTHONPATH=tests).
"""
