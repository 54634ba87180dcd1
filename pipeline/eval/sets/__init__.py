"""Define evaluation sets on disk, and the prompts of their classes.

Imports no other package of this project. Start with `evaluation_sets`: the files of a set, and the checks before
scoring.
"""
