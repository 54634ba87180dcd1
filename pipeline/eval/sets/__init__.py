"""Evaluation sets on disk, and the prompts of their classes.

Imports nothing of ours. Start with `evaluation_sets`, which opens a folder and checks it before anything is scored.
"""
