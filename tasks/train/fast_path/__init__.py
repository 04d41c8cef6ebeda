"""Training on a GPU: fixed shapes, compiled layers, our own kernels, weights sharded over GPUs.

It has one door: `base_model.load` loads the base and chooses a plan, `setup.enable` puts the trainer
on it. Not for CPUs and models that it does not support: those train by TRL alone.
"""
