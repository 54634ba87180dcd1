"""Checkpoints of a run, and the weights that it starts from.

May import `model`; storage is handed in as `storage_protocol.Storage`. Start with `checkpoint`: a folder of files whose
manifest is written last. `background_saver` writes during training, `initial_weights` opens what --start_from names.
"""
