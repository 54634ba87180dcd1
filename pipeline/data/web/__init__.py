"""Addresses and what a site allows: spelling of URLs, addresses that are safe to connect to, robots.txt.

Imports nothing of ours. Start with `urls`; `addresses` decides where a crawler may connect, `robots` what it may fetch.
Fetching itself is in `crawl`.
"""
