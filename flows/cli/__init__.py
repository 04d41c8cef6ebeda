"""The `precis` command: console function, typer app, and its verbs.

Not for work: a verb calls a flow or a module and prints what came of it.
"""
