"""The step that decides, from stored scores alone: bootstrap, guardrails, verdict, recompute; decay.

Not for acting on the verdict: tasks.register.
"""
