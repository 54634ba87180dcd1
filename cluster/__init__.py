"""Connect to Ray, access storage by URI, and run resumable stages.

This package knows nothing about pairs or models and imports no other package of this project. Start with `stages`,
which reads, processes and writes parts. `parts` defines the files of a stage, `storage` reads and writes files,
`session` connects a job to Ray, `telemetry` reports progress.
"""
