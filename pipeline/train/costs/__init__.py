"""What a run costs before it runs: floating-point operations and memory of a step.

May import `model` and `train.reading`. `flops` also gives the share of a device's peak (MFU) that metrics report;
`memory` is what docs/scaling.md is computed from. Start with either.
"""
