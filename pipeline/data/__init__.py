"""From the open web to a balanced, deduplicated, versioned corpus of image-text pairs.

Each package is one subject, as pure functions over Arrow tables and small classes for what an actor keeps. Only `flows`
knows Ray: it strings the functions of the other packages together, in the order in which a pair passes through them.
Start with `flows.crawl_flow` and `flows.curate_flow`; the columns between stages are in `pipeline.schemas`.
"""
