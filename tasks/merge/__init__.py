"""The step that folds the adapter into the base, shard by shard, and checks the drift.

Not for evaluation: how good the merged model is does not matter here.
"""
