"""The query list: terms of Wikipedia and other texts, popular titles, WordNet.

May import `text` and `sources`. Start with `query_list`, which scores and selects terms. `counting` counts terms,
`wikipedia` reads dumps of articles, and `page_views` reads dumps of page views. `wikitext` extracts the running text of
an article's markup; `wiki_site` knows the names of a wiki's namespaces.
"""
