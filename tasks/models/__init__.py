"""Base models and packages on disk: finding, checking, RoPE, chat templates, loading, quantization.

Not for training or merging them.
"""
