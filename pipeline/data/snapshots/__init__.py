"""Snapshots: immutable, versioned data sets of Parquet shards, on disk or S3.

Files at URIs and nothing else, so it may import the storage modules of `cluster`, but neither Ray nor other packages of
data. Start with `snapshot` (open, verify) and `commit`; `reading` and `epoch_order` are how training reads one,
`tombstones`, `takedown` and `garbage` how pairs and files go.
"""
