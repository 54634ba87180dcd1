"""What must not get in: block lists of addresses, domains, files and pictures, and classifiers of images.

May import `web` and `sources`. Start with `screening`, which has the options; `block_lists` reads and looks up lists,
`inline_images` screens images that a source already holds. The manual is docs/safety.md.
"""
