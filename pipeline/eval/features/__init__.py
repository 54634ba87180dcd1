"""Images and texts to features, in batches.

May import `model`. `encoder` is all of it: the state that an actor keeps is the model.
"""
