"""Duplicates and overlap: pictures that are alike by file, hash, caption or embedding.

May import `web`, `images` and `text`. Start with `dedupe`, then `duplicate_graph`, which decides what stays; `hamming`
and `embedding_neighbours` find what is alike, `overlap` finds pictures of evaluation sets.
"""
