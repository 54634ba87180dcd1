"""Pairs from and for other tools: their tars and tables in, webdataset tars out.

May import `images`, `text`, `sources` and `snapshots`. Start with `foreign_pairs`, which reads what others made without
changing a byte; `webdataset` writes a shard as a tar. The flows around both are in `flows.import_export_flow`.
"""
