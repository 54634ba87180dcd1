"""Models: towers, objectives, the tokenizer, and reading and writing weights.

Start with `config`, the table of models. May import `pipeline.paper`, but neither `pipeline.data` nor Ray. Users open
any model with one call of `pipeline.load`.
"""
