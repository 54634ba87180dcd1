"""Parse URLs, decide which addresses are safe to connect to, and read robots.txt.

Imports nothing else from this project. Start with `urls`; `addresses` decides where a crawler may connect, `robots`
what it may fetch. Fetching itself is in `crawl`.
"""
