"""What a network is trained for: contrastive, and the rivals of figure 2, over the same image tower.

May import `towers` and `model.config`. Start with `clip`, then `loss`, which computes the contrastive loss in tiles on
any number of ranks; `networks` chooses the network of an objective.
"""
