"""Checkpoints: in the folder of a job (`local`), and in a store that all workers see (`store`).

Not for the finished adapter, which is an artifact in MLflow.
"""
