"""The image tower (from timm) and the text tower, with the paper's activation and initial values.

May import `model.config` and `pipeline.paper`. Start with `image_tower` and `text_tower`. The networks in `objectives`
combine them.
"""
