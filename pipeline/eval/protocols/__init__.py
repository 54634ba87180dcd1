"""Compute scores from features: zero-shot classification, retrieval, and their uncertainty.

All functions are pure. May import `sets`. Start with `suite`, which has the table of benchmarks; `statistics` has the
intervals and chance levels.
"""
