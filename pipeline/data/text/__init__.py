"""Text of captions: words, language, personal data, the rules for captions, and matching with the query list.

May import `hashing`, `reasons` and `schemas`. Start with `caption_rules`, which checks every caption. `match` finds the
queries in a caption; it shares `words`, and the folding of `spelling`, with the counting of terms for the query list.
"""
