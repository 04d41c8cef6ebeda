"""Prefect, as steps use it: task options, progress, concurrency limits, task runners.

Not for flows, which are in flows/, and not for what a step computes.
"""
