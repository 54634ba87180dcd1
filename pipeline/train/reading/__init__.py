"""Read batches from a snapshot: choose the rows of each step, decode them, and copy them to the device.

May import the readers of snapshots, `model` and `train.step`. Start with `plan`, a pure function of (shards, seed,
epoch, step). `batches` reads and decodes rows without torch; `prefetch` copies batches to the device in advance.
"""
