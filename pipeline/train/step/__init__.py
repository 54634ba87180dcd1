"""The gradient of one step: gradient caching over chunks, for every objective.

May import `model` and `train.network`. Start with `gradients`, the one call of the loop, then `grad_cache`; `chunks`
chooses sizes and retries after out-of-memory, `graph_budget` decides which graphs are kept.
"""
