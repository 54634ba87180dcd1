"""The crawler of one actor: fetching politely, checking, retrying.

May import `web`, `images` and `safety`. Start with `crawler`, which turns candidates into checked images; `fetch` makes
one request safely, `politeness` says when a host may be asked again, `retries` which rows are asked for later.
"""
