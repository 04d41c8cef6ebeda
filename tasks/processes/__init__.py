"""Processes and the machine: a step's own process, supervised commands, file locks, devices, S3.

Not for what a step computes, and not for Prefect or MLflow.
"""
