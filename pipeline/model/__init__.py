"""Models: towers, objectives, tokenizer, weights in and out.

`config` is the table of models and the place to start. May import `pipeline.paper`, and neither data nor Ray. For
users, `pipeline.load` opens any model in one call.
"""
