"""Byte-pair encoding of captions (CLIP, section 2.4): trained on a corpus, or as released.

May import `pipeline.paper`. Start with `tokenizer`; `vocabulary` is the layout of the entries.
"""
