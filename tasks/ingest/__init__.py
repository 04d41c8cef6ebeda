"""The step that turns raw data into canonical rows: reading, columns, rejects, duplicates, splits.

The base's chat template is tried here too, on the rows: chat_template_check.py.

Not for prompts: how a row is shown to the model is in tasks.serving.
"""
