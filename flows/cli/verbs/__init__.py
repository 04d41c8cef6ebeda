"""A function for each verb of `precis`, with its arguments and options as typer reads them.

Not for anything that another caller could need: that stands in flows/, and is imported in the
function that calls it, since `precis --help` must not wait for it.
"""
