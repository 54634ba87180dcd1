"""Ray plumbing: sessions, storage, runs, resources, telemetry. Imports nothing of the pipeline."""
