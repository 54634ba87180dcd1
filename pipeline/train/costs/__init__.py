"""Compute the cost of a run in advance: floating-point operations and memory of a step.

May import `model` and `train.reading`. `flops` also computes the model FLOPs utilisation (MFU) that metrics report;
docs/scaling.md is computed from `memory`. Start with either.
"""
