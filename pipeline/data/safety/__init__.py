"""Keeps forbidden content out of the corpus: block lists of URLs, domains, files and pictures, and image classifiers.

May import `web` and `sources`. Start with `screening`, which has the options. `block_lists` reads and looks up lists;
`inline_images` screens images that a source itself contains. The manual is docs/safety.md.
"""
