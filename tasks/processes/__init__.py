"""Processes and the machine: a step's own process, supervised commands, file locks, devices, S3.

A cancelled run's processes are ended by step_process.py (`end_group`), those of a killed parent by
supervised.py (`end_family`).

Not for what a step computes, and not for Prefect or MLflow.
"""
