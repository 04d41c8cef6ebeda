"""The step that writes summaries of the sealed evaluation set and scores them.

Not for comparing models: tasks.gate.
"""
