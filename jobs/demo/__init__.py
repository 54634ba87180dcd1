"""The main job on one machine: a small web of its own, and the whole chain over it."""
