"""Encode captions with byte pairs (section 2.4), using a trained or the released vocabulary.

May import `pipeline.paper`. Start with `tokenizer`. `vocabulary` defines the order of the entries.
"""
