"""Memory and time of a run, estimated before it starts: memory plan, sizes, device speed, forecast.

Not for measuring: what a step used is in tasks.processes.resource_usage.
"""
