"""The command-line jobs: `python -m jobs.NAME`, locally or through `ray job submit`.

Each job is one file: a configuration dataclass and a `main` that wires functions of `pipeline` together. Jobs may
import every package; only the demo imports jobs. Start reading with `crawl`. Code that jobs share is in `options`.
"""
