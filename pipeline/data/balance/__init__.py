"""Balancing: limits the number of pairs per query (CLIP, section 2.2).

Exact, independent of order, and mergeable across parts. May import `hashing`, `paper`, `reasons` and `schemas`. Start
with `balancing`; `survival` estimates from an earlier crawl how many pairs of each query to fetch.
"""
