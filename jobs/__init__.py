"""What people start: `python -m jobs.NAME`, or the same behind `ray job submit`.

One file per job: a configuration dataclass and a `main` that wires functions of `pipeline` together. Jobs may import
everything, and nothing imports a job but the demo. Start with `crawl`; what jobs share is in `options`.
"""
