"""The step that writes the run's page, as HTML in MLflow and as a Prefect artifact.

Not for computing anything that decides.
"""
