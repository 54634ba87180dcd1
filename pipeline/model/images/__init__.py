"""Prepare images for a model: the random crop of training, and the preprocessing of evaluation.

May import `pictures` and `towers`. `random_crop` does not import torch, so that reading processes start faster.
`preprocess` matches open_clip bit for bit. Start with whichever module you need.
"""
