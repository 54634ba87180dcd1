"""Balancing: at most so many pairs per query (CLIP, section 2.2).

Exact, independent of order, and mergeable across parts. May import `hashing`, `paper`, `reasons` and `schemas`. Start
with `balancing`; `survival` says how many spare addresses a query needs, from an earlier crawl.
"""
