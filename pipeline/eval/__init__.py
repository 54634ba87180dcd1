"""The benchmark suite: evaluation sets, features, protocols, and the report.

`flows.benchmark_flow` encodes each image and text once on Ray and is the place to start; protocols are pure functions
over the features. May import `model`, `paper` and `schemas`; training does not import it.
"""
