"""Read candidates from WARC and WAT archives, tables of URLs, and img2dataset's output.

Every reader turns a file into CANDIDATES (`pipeline.schemas`); a record without candidates becomes a row with a reason.
May import `web`. Start with `extract` and `page`; the caller opens the files (`flows.input_files`).
"""
