"""Training of the duplicate detector (CLIP, appendix C).

May import `model` and `hashing`. Start with `duplicate_detector`; `distortions` makes the two versions of a picture
that it learns from.
"""
