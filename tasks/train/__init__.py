"""The step that trains the adapter (QLoRA), on a CPU, a GPU or several.

Not for merging it into the base: tasks.merge.
"""
