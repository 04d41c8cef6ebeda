"""The step that folds the adapter into the base, shard by shard, and checks the drift.

Not for evaluation: whether the merged model is any good is not asked here.
"""
