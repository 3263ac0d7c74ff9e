"""Media files to arrays, in killable children: probing, reading, resampling in time and space.

Imports schemas; PyAV and decord where they are installed; no torch, no ray.
"""
