"""What is done to a network before it trains: compile, checkpoint activations, shard, half precision.

May import `model` and `train.config`. Start with `prepare`, which applies all of it in the required order; `batch_norm`
makes batch norms exact under gradient caching.
"""
