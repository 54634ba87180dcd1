"""The data card of a snapshot: its contents, its sources, and what was left out (Gebru et al. 2021).

May import `web` and `schemas`. Start with `card`, which counts pairs and composes the card. `card_pages` renders the
card as Markdown and HTML with the templates in this folder.
"""
