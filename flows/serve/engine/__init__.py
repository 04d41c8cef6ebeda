"""The process that serves one version: its own prompts and output rules around vLLM or transformers.

Not for clients: it listens on a Unix socket, for the proxy alone. Knows neither Prefect nor MLflow.
"""
