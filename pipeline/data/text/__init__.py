"""Text of captions: words, language, personal data, the rules for captions, and matching with the query list.

May import `hashing`, `reasons` and `schemas`. Start with `caption_rules`, which every caption passes; `match` finds the
queries in a caption, and shares its `words` with the counting of queries.
"""
