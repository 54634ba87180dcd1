"""From features to scores: zero-shot classification, retrieval, and their uncertainty.

Pure functions; may import `sets`. Start with `suite`, the table of benchmarks; `statistics` has the intervals and
chance levels.
"""
