"""The stores behind cluster.storage: local disks, S3 servers of any make, and web servers.

Everything else opens files through cluster.storage, which picks a store by the URI. Start reading with `errors`: every
store reports its failures as these errors, by their cause.
"""
