"""Real file systems of other makes for tests, mounted where only the test sees them.

`mounted` mounts them: a disk in memory, an overlay, a file system in an image file, and `fuse`. `fuse` is a file system
of our own, which answers as disks of other makes do: without links, locks or syncs, silent, or with lost replies.
"""
