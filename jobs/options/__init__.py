"""What the jobs share: the command line, and the options that several jobs have.

`launch` turns defaults, a TOML file and options into one frozen dataclass and reports errors in one line; start there.
The other modules open what options name: query lists, encoders, a person's own images. They may import `pipeline` and
`cluster`, but no job.
"""
