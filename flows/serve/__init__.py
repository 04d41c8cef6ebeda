"""`precis serve`: follows a registered model's alias, and serves it over HTTP through existing engines.

Not for decoding (vLLM or transformers do it), nor for several machines: they take `precis pull`.
"""
