"""Image encoders besides CLIP: baselines from timm, the duplicate detector, and embeddings of encoded images.

May import `model.config`, `images`, `towers` and `weights`. Start with `image_encoder`, which the corpus pipeline uses.
`baselines` opens the models of figure 10; `duplicate_detector` is the detector of appendix C.
"""
