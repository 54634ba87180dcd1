"""Image encoders beside CLIP: models of timm to compare with, the duplicate detector, embeddings of pictures.

May import `model.config`, `images`, `towers` and `weights`. Start with `image_encoder`, which the data chain uses;
`baselines` are the models of figure 10, `duplicate_detector` is appendix C's.
"""
