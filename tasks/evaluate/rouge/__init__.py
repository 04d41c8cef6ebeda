"""ROUGE in the form that Hugging Face's `evaluate` loads from a folder.

Not for importing by name from elsewhere than tasks.evaluate.
"""
