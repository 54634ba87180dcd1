"""Compute the gradient of one step by gradient caching over chunks, for every objective.

May import `model` and `train.network`. Start with `gradients`, then read `grad_cache`. `chunks` chooses the chunk size
and retries after out-of-memory; `graph_budget` decides which graphs are kept. The training loop calls `chunks`.
"""
