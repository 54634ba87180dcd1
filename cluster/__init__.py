"""Ray and storage plumbing.

Sessions with Ray, bytes at a URI, and the machinery of a run: parts, stages, telemetry. It knows nothing of pairs or
models and imports nothing of ours. Start with `stages`: how a part is read, processed and written. `parts` is what lies
on disk, `storage` how bytes get there, `session` how a job connects to Ray.
"""
