"""Checkpoints: in the folder of a job, and in a store that every worker sees.

Not for the finished adapter, which is an artifact in MLflow.
"""
