"""What travels with the registered model: prompt, truncation, decoding, as trained with and judged.

Not for anything that needs this project installed: nothing here imports any of it.
"""
