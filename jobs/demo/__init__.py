"""The demo: run all jobs on one machine over a small generated web (`make demo`).

Start reading with `chain`, which runs the jobs in order. `gather` collects the rows that the report shows. The package
`web` generates the web that is crawled.
"""
