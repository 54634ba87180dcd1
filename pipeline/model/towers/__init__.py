"""The two towers: images (timm) and texts, with the paper's activation and initial values.

May import `model.config` and `pipeline.paper`. Start with `image_tower` and `text_tower`; the objectives put them
together.
"""
