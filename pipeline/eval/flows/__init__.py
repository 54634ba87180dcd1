"""Evaluate models on Ray: a pool of actors writes features to a store that all protocols read.

The only package of eval that may import Ray and `cluster`. Start with `benchmark_flow`. `validation` scores a model
during training, in one process.
"""
