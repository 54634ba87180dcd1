"""Networks and losses of the training objectives: CLIP, and the alternatives that figure 2 compares with it.

All of them have the same image tower. May import `towers` and `model.config`. Start with `clip`, then `loss`, which
computes the contrastive loss in tiles on any number of ranks. `networks` builds the network of an objective.
"""
