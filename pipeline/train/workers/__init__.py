"""Run the workers of a training run on Ray Train.

The only package of train that may import Ray and `cluster`. Start with `loop`, the training loop. `run` defines a run:
model, data, recipe, folder. `trainer` starts and finishes a run, `worker_group` keeps the right number of workers,
`rank_zero` writes metrics, checkpoints and models, `step_decisions` decides when to save or leave.
"""
