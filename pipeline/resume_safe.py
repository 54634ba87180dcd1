"""The mark of a configuration's field that does not change what a run produces."""

from __future__ import annotations

RESUME_SAFE = {"resume_safe": True}
"""Metadata of such a field: cluster.runs.identity leaves it out, so a run may be resumed with another value."""
