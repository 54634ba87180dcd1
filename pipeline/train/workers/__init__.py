"""The workers of a run on Ray Train, and the run as it looks from outside.

The only package of train that may import Ray and `cluster`. Start with `loop`, the training loop; `run` is what is
trained on what, `trainer` starts and finishes it, `worker_group` keeps the right number of workers, `rank_zero` writes
what a run leaves, `step_decisions` says when to save or leave.
"""
