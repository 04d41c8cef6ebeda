"""Servers on this machine: the embedded one of a single run, and the stack of `precis up`.

Not for servers of your own: deployments/ and docs/servers.md.
"""
