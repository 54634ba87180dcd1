"""Update the weights from gradients: AdamW, half-precision moments, skipped steps.

May import `model`, `train.network` and `train.config`. Start with `optimizer`. `bf16_adam` stores half-precision values
with `stochastic_rounding`; `nonfinite_steps` skips steps whose loss or gradient is not finite.
"""
