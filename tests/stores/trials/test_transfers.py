from __future__ import annotations

import os
import threading
import time

import botocore.exceptions
import pytest

from tests.stores import checksums, transfers
from tests.stores.imitated import ImitatedStore, Opener, Quirk, after, only
from tests.stores.trials.clients import client_of, refusal


def test_bodies_are_changed(open_store: Opener, bucket: str, key: str) -> None:
    place = {"Bucket": bucket, "Key": key}
    client_of(os.environ["AWS_ENDPOINT_URL"]).put_object(**place, Body=b"0123456789")

    def read(*quirks: Quirk) -> list[bytes]:
        client = client_of(open_store(*quirks, checksums.forgets_checksums).endpoint)
        return [client.get_object(**place)["Body"].read() for _ in range(3)]

    assert read(transfers.truncated) == [b"01234"] * 3
    assert read(transfers.flipped_bit(times=1)) == [b"0123446789", b"0123456789", b"0123456789"]
    assert read(transfers.flipped_bit()) == [b"0123446789"] * 3
    assert read(only(transfers.flipped_bit(), "GET", "elsewhere")) == [b"0123456789"] * 3
    with pytest.raises(botocore.exceptions.ResponseStreamingError):
        read(transfers.cut_off)


def test_an_error_in_the_answer_to_complete(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(transfers.error_after_complete).endpoint)
    place = {"Bucket": bucket, "Key": key}
    upload = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
    part = client.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    assert refusal(client.complete_multipart_upload, **upload, MultipartUpload=parts)[1] == "InternalError"
    assert refusal(client.head_object, **place)[0] == 404


def test_silence_lasts_until_the_store_closes(bucket: str, key: str) -> None:
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], only(after(1, transfers.silent), "PUT")) as store:
        client = client_of(store.endpoint)
        client.put_object(Bucket=bucket, Key=key, Body=b"content")
        raised: list[Exception] = []

        def put() -> None:
            try:
                client.put_object(Bucket=bucket, Key=key, Body=b"other")
            except botocore.exceptions.BotoCoreError as error:
                raised.append(error)

        waiting = threading.Thread(target=put)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content", "others are answered"
    waiting.join(2.0)
    assert not waiting.is_alive()
    assert len(raised) == 1


def test_slow_answers_and_hanging_up(open_store: Opener, bucket: str, key: str) -> None:
    store = open_store(only(transfers.slow(0.2), "PUT"), only(transfers.hangs_up, "GET"))
    client = client_of(store.endpoint)
    start = time.monotonic()
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert time.monotonic() - start >= 0.2
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        client.get_object(Bucket=bucket, Key=key)
    assert [seen.status for seen in store.seen] == [200, 0]
