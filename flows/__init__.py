"""What happens, in order: each flow reads like the README.

Not for how a step is done: tasks/.
"""
