"""S3 stores of other makes, imitated on loopback in front of a real S3 server (moto).

`imitated.ImitatedStore` forwards requests to the server and applies quirks. A quirk is one function, `(request,
forward) -> answer`: it can answer itself, change the request, or change the answer. The quirks are in `conditions`,
`refusals`, `checksums`, `listings`, `removals`, `transfers`, `gateways` and `addressing`. Those that real stores have
name their sources.
`certificates` puts a server behind TLS, and `forward_proxy` is the proxy of a company network.
"""
