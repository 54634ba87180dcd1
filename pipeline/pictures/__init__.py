"""Decode pictures from outside: one decoder and one orientation for crawl, import, training, evaluation and front door.

No module here trusts the bytes. `essential` keeps what determines the first picture of a file, so that metadata of any
size reaches no decoder; `decode` turns that into a picture, upright and on white. Imports nothing of ours. Start with
`decode`.
"""
