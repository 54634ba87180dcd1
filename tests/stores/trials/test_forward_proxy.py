from __future__ import annotations

from pathlib import Path

import pytest
import urllib3

from tests.stores import addressing, refusals
from tests.stores.certificates import PrivateAuthority
from tests.stores.forward_proxy import ForwardProxy
from tests.stores.imitated import Opener, only
from tests.stores.trials.clients import client_of, refusal


def test_a_forward_proxy(open_store: Opener, bucket: str, key: str, tmp_path: Path) -> None:
    authority = PrivateAuthority(tmp_path)
    plain, encrypted = open_store(), open_store(context=authority.context())
    for store in (plain, encrypted):
        with ForwardProxy({"store.internal": store.port}) as proxy:
            proxies = {"http": proxy.endpoint, "https": proxy.endpoint}
            client = client_of(store.endpoint_at("store.internal"), authority, proxies=proxies)
            client.put_object(Bucket=bucket, Key=key, Body=b"content")
            assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"
            assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == 7
            assert proxy.num_requests == (3 if store is plain else 1), "one tunnel serves all"
            assert "store.internal" in proxy.targets[0]
        assert store.operations == ["PutObject", "GetObject", "HeadObject"]


@pytest.mark.parametrize("status", [403, 407])
def test_a_forward_proxy_that_refuses(open_store: Opener, tmp_path: Path, status: int) -> None:
    store = open_store()
    with (
        ForwardProxy({"store.internal": store.port}, refuses=status) as proxy,
        urllib3.ProxyManager(proxy.endpoint) as pool,
    ):
        assert pool.request("GET", store.endpoint_at("store.internal")).status == status
        context = PrivateAuthority(tmp_path).context()
        with pytest.raises(urllib3.exceptions.MaxRetryError, match=str(status)):
            pool.request("GET", open_store(context=context).endpoint_at("store.internal"), retries=0)
    assert store.seen == []


def test_a_forward_proxy_knows_only_its_hosts() -> None:
    with ForwardProxy({"store.internal": 1}) as proxy, urllib3.ProxyManager(proxy.endpoint) as pool:
        assert pool.request("GET", "http://elsewhere.internal/").status == 502


def test_a_store_with_buckets_in_host_names_only(open_store: Opener, bucket: str, key: str) -> None:
    store = open_store(addressing.virtual_host_only("store.internal"), only(refusals.access_denied, "DeleteObject"))
    with ForwardProxy({"store.internal": store.port}) as proxy:
        endpoint, proxies = store.endpoint_at("store.internal"), {"http": proxy.endpoint}
        client = client_of(endpoint, proxies=proxies, s3={"addressing_style": "virtual"})
        client.put_object(Bucket=bucket, Key=key, Body=b"content")
        assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]] == [key]
        assert refusal(client.delete_object, Bucket=bucket, Key=key) == (403, "AccessDenied")
        with_path = client_of(endpoint, proxies=proxies)
        assert refusal(with_path.get_object, Bucket=bucket, Key=key) == (403, "SecondLevelDomainForbidden")
