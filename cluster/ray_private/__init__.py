"""The only package that imports private parts of Ray; it fits Ray 2.60.

Ray changes these names between releases without notice. All other modules import them from here, and
tests/cluster/ray_private checks every name against the installed release. Start with `core` (connections),
`data` (the scheduler of Ray Data) or `train` (the controller of Ray Train); each module loads only its part of Ray.
This package imports nothing else of this project.
"""

RAY_RELEASE = "2.60"
"""The Ray release that these modules fit."""
