"""From a snapshot to batches: which rows make which step, decoding, and transfer to the device.

May import the reading side of snapshots, `model` and `train.step`. Start with `plan`, a pure function of (shards, seed,
epoch, step); `batches` reads and decodes without torch, `prefetch` puts batches on the device ahead of time.
"""
