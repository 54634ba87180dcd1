"""Evaluation on Ray: a pool of actors encodes into a store that every protocol reads.

The only package of eval that may import Ray and `cluster`. Start with `benchmark_flow`; `validation` scores a model
that is still being trained, in one process.
"""
