"""What people start, one thin file each: `python -m jobs.NAME` or `ray job submit`."""
