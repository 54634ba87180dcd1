"""Contrastive pretraining with exact gradient caching, on any number of workers.

`config` is the recipe; `workers.loop` is the training loop and the place to start. `reading` supplies batches, `step`
computes the gradient, `network` fits the model to its devices, `optimizer` moves the weights, `checkpoints` and
`telemetry` keep what a run leaves. Only `workers` knows Ray; nothing here imports `pipeline.eval`.
"""
