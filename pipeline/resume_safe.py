"""Mark the configuration fields that do not change the output of a run."""

from __future__ import annotations

RESUME_SAFE = {"resume_safe": True}
"""Metadata for such a field. cluster.runs.identity ignores the field, so a run can be resumed with another value."""
