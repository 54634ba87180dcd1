"""Encode images and texts to features, in batches.

May import `model`. The only module is `encoder`; an `Encoder` is the state that an actor keeps.
"""
