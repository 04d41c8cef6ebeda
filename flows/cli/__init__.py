"""The `precis` command: entry, parser and a function a verb.

Not for work: a verb calls a flow or a module and prints what came of it.
"""
