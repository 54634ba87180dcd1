"""The command line of all jobs, and the options that several jobs share.

Start reading with `launch`: it builds one frozen dataclass from defaults, a TOML file and options, and reports user
errors in one line. The other modules open the files that options name: query lists, encoders, the user's own images.
Modules here may import `pipeline` and `cluster`, but no job.
"""
