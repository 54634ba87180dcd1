"""Exchange of pairs with other tools: reads their tars and tables, writes webdataset tars.

May import `images`, `text`, `sources` and `snapshots`. Start with `foreign_pairs`, which reads the pairs of other tools
without changing a byte. `webdataset` writes a shard as a tar. `flows.import_export_flow` has the flows that use both.
"""
