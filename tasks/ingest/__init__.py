"""The step that turns raw data into canonical rows: reading, columns, rejects, duplicates, splits.

Not for prompts: how a row is shown to the model is in tasks.serving.
"""
