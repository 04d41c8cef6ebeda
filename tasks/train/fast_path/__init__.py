"""Training on a GPU: fixed shapes, compiled layers, own kernels, weights sharded over GPUs.

Not for CPUs and models that it does not know: those train by TRL alone. `setup` is the door.
"""
