"""The data card of a snapshot: what is in it, where it came from, what was left out (Gebru et al. 2021).

May import `web` and `schemas`. Start with `card`, which counts and adds up; `card_pages` renders the result with the
templates beside it, as Markdown and HTML.
"""
