"""The data chain on Ray: which function of the other packages runs on which rows, in which order.

The only package of data that may import Ray and all of `cluster`. Start with `crawl_flow` (archives to images) and
`curate_flow` (images to a snapshot); each opens with its list of stages. `bucketing` decides which rows meet, and
`input_files` opens what a job reads.
"""
