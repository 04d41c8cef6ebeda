"""What every part agrees on: recipe, records, errors, digests, metrics, truncation counts.

Not for anything that reads a model, a store or a server: only the standard library, pydantic and hashes.
"""
