"""Where candidates come from: WARC and WAT archives, tables of addresses, img2dataset's output.

Every reader turns a file into CANDIDATES (`pipeline.schemas`), with a reason for each record that gives none. May
import `web`. Start with `extract` and `page`; files are opened by the caller (`flows.input_files`).
"""
