"""Nightly runs on the systems that people have: Kubernetes, Slurm, systemd, cron.

`render` turns a Schedule into the files that a system needs; `apply` hands them to its tool. What
runs every night is `tokenmill run JOB`: it resumes by itself and does only what is new.
"""
