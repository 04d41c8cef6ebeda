"""The step that makes the winner champion: claims, logging, reload check, rollback, lookup.

Not for judging: nothing is registered that the gate did not pass.
"""
