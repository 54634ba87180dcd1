"""The one place where private parts of Ray are imported, for Ray 2.60.

Ray changes these names between releases without notice, so everything else imports them from here, and
tests/cluster/test_ray_private.py checks each of them against the installed release. Start with `core` (connecting),
`data` (the scheduler of Ray Data) or `train` (the controller of Ray Train); a module loads only its part of Ray.
It imports nothing of ours.
"""

RAY_RELEASE = "2.60"
"""The release that these modules fit."""
