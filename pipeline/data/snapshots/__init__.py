"""Store, read and delete snapshots: immutable, versioned data sets of Parquet shards, on disk or S3.

This package works only on files at URIs. It may import the storage modules of `cluster`, but neither Ray nor other
packages of pipeline.data. Start with `snapshot` (open, verify) and `commit`. Training reads snapshots with `reading`
and `epoch_order`. `tombstones`, `takedown` and `garbage` remove pairs and files.
"""
