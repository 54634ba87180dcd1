"""Run the data pipeline on Ray: these modules apply functions of the other packages to rows, stage by stage.

This is the only package of pipeline.data that may import Ray and all of `cluster`. Start with `crawl_flow` (archives to
images) and `curate_flow` (images to a snapshot); the docstring of each lists its stages. `bucketing` decides which rows
are processed together, and `input_files` opens the input files of a job.
"""
