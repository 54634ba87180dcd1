"""Find duplicates and overlap: pictures that match by file, hash, caption or embedding.

May import `web`, `images` and `text`. Start with `dedupe`, then `duplicate_graph`, which decides which pictures are
kept. `hamming` and `embedding_neighbours` find similar pictures. `overlap` finds pictures of evaluation sets.
"""
