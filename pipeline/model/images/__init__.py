"""Images for a model: the crop of training, and the preprocessing of evaluation.

May import `towers`. `random_crop` works without torch, because reading processes start faster so; `preprocess` matches
open_clip bit for bit. Start with the one you need.
"""
