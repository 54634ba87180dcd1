"""Read what the web is written in, as browsers do: URLs, charsets, srcset and <picture>, data: URLs, robots.txt.

Pure functions of text and bytes; time is linear in both. Start with `urls`. `charsets` (with `decoders`) decodes pages,
`picture` (with `srcset` and `media_queries`) finds the address of an image, `data_urls` reads images inside of pages.
`addresses` decides where a crawler may connect, `robots` what it may fetch; fetching itself is in `crawl`.
May import `printable`.
"""
