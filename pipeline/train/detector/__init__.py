"""Train the duplicate detector (CLIP, appendix C).

May import `model` and `hashing`. Start with `duplicate_detector`; `distortions` makes the distorted versions of
pictures from which the detector learns.
"""
