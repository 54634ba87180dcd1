"""The query list: terms of Wikipedia and other texts, popular titles, WordNet.

May import `text` and `sources`. Start with `query_list`, which scores and selects terms. `counting` counts terms,
`wikipedia` reads dumps of articles, and `page_views` reads dumps of page views.
"""
