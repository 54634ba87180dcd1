"""The query list: terms of Wikipedia and other texts, popular titles, WordNet.

May import `text` and `sources`. Start with `query_list`, which scores and selects; `counting` counts terms, `wikipedia`
reads dumps, `page_views` reads how often titles are looked at.
"""
