"""A person's own images: labels for them, and searching them, without Ray.

May import `protocols`, `sets` and `model`. Start with `own_images`, which finds, opens and encodes; `own_texts` ranks,
`contact_sheet` draws. jobs.classify and jobs.search are built on it.
"""
