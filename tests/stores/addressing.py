"""Stores that find the bucket in the host name, and refuse it in the path."""

from __future__ import annotations

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error


def virtual_host_only(*domains: str, code: str = "SecondLevelDomainForbidden") -> Quirk:
    """Answers requests to bucket.domain, and 403 with this code to others.

    Sources: treeverse/lakeFS#3613 (Alibaba's OSS), gobackup/gobackup#233 (Tencent's COS: PathStyleDomainForbidden).

    It must be the first quirk of a store: the later ones see requests in path style. Without it, stores have only path
    style.
    """
    endings = tuple(f".{domain}" for domain in domains)

    def quirk(request: Request, forward: Forward) -> Answer:
        host = request.headers.get("Host", "").rpartition(":")[0] or request.headers.get("Host", "")
        if not host.endswith(endings):
            return error(request, 403, code, "Please use virtual hosted style to access.", HostId=host)
        bucket = next(host.removesuffix(ending) for ending in endings if host.endswith(ending))
        request.path = f"/{bucket}{request.path}"
        return forward(request)

    return quirk
