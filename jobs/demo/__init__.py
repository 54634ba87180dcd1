"""The whole chain on one machine, over a small web of its own: `make demo`.

`chain` runs the jobs one after the other and is the place to start; `gather` collects what the report shows. The web
that is crawled is made by the package `web`.
"""
