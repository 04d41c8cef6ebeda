"""The step that decides, from stored scores alone: bootstrap, guardrails, verdict, recompute; decay.

The bound of the gain: bootstrap.py, lowered by skew.py, put together in measure.py.

Not for acting on the verdict: tasks.register.
"""
