"""From a gradient to new weights: AdamW, half-precision moments, steps that are skipped.

May import `model`, `train.network` and `train.config`. Start with `optimizer`; `bf16_adam` rounds stochastically
(`stochastic_rounding`), `nonfinite_steps` skips what is not finite.
"""
