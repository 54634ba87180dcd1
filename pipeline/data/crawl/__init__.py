"""Fetch images politely and safely over HTTP(S), check them, and select rows for later attempts.

Each actor runs one crawler. May import `web`, `images` and `safety`. Start with `crawler`, which turns candidates into
checked images. `fetch` makes single requests, `politeness` decides when a host may receive the next request, and
`retries` selects the rows to request again.
"""
