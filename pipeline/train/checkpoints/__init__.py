"""Save and load the checkpoints of a run, and read the weights that a run starts from.

May import `model`; the storage is passed in as a `storage_protocol.Storage`. Start with `checkpoint`: a checkpoint is a
folder of files whose manifest is written last. `background_saver` writes checkpoints during training, `initial_weights`
reads the weights that --start_from names.
"""
