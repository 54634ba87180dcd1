"""Prepare a network for training: compile, checkpoint activations, shard, store weights in half precision.

May import `model` and `train.config`. Start with `prepare`, which compiles, checkpoints and shards in the required
order. `batch_norm` makes batch norms exact under gradient caching.
"""
