"""One client, configured by botocore's chain: from variables and profiles."""

import os
import threading
from pathlib import Path

import pytest

from cluster.stores.errors import CredentialsError, StorageError
from cluster.stores.s3 import client as client_module
from cluster.stores.s3.client import FEW_ATTEMPTS, RETRY_ATTEMPTS, client, few_attempts, location


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of profiles, of which one is chosen, and no variables that come first."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "store")
    return tmp_path / "config"


def test_a_profile_configures_everything(profile: Path) -> None:
    profile.write_text(
        "[profile store]\nregion = eu-west-1\nendpoint_url = https://store.example\naws_access_key_id = of-profile\n"
        "aws_secret_access_key = secret\nmax_attempts = 2\ns3 =\n    addressing_style = virtual\n"
    )
    made = client()
    assert (made.meta.region_name, made.meta.endpoint_url) == ("eu-west-1", "https://store.example")
    assert made.meta.config.s3["addressing_style"] == "virtual"
    assert "of-profile" in made.generate_presigned_url("get_object", {"Bucket": "b", "Key": "k"})
    assert made.meta.config.retries["total_max_attempts"] == 2
    assert location() == {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL_S3": "https://store.example"}


def test_services_of_a_profile(profile: Path) -> None:
    profile.write_text(
        "[profile store]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = http://s3.example:1\n"
    )
    assert client().meta.endpoint_url == "http://s3.example:1"


def test_variables_come_first(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile.write_text("[profile store]\nregion = eu-west-1\nendpoint_url = https://store.example\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all.example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert client().meta.endpoint_url == "http://all.example"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example")
    monkeypatch.setenv("AWS_REGION", "auto")
    assert (client().meta.endpoint_url, client().meta.region_name) == ("http://s3.example", "auto")


def test_amazon_itself_has_no_endpoint_to_tell(profile: Path) -> None:
    profile.write_text("[profile store]\nregion = eu-west-1\n")
    assert client().meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    assert location() == {"AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", StorageError, "profile .store. could not be found"),
        (
            "[profile store]\ns3 =\n  addressing_style = sideways\n",
            StorageError,
            "addressing style sideways is invalid",
        ),
        ("[profile store]\nendpoint_url = store:9000\n", StorageError, "Invalid endpoint: store:9000"),
        ("[profile store]\ncredential_process = /no/program\n", CredentialsError, "/no/program"),
    ],
)
def test_a_configuration_that_cannot_be_used(profile: Path, text: str, kind: type[Exception], message: str) -> None:
    profile.write_text(text)
    with pytest.raises(kind, match=message) as refused:
        client()
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)
    assert location() == {}, "a job that does not need S3 is not disturbed"


def test_a_client_is_made_once_for_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    first = client()
    assert client() is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other.example")
    assert client() is not first
    monkeypatch.undo()
    assert client() is first


def test_few_attempts_are_of_one_thread() -> None:
    counts = []

    def count() -> None:
        counts.append(client().meta.config.retries["total_max_attempts"])

    with few_attempts():
        count()
        thread = threading.Thread(target=count)
        thread.start()
        thread.join()
    count()
    assert counts == [FEW_ATTEMPTS, RETRY_ATTEMPTS, RETRY_ATTEMPTS]


def test_the_environment_of_a_client_has_no_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNRELATED", "1")
    monkeypatch.setenv("no_proxy", "store.example")
    names = {name for name, _ in client_module._environment()}
    assert "no_proxy" in names
    assert "UNRELATED" not in names
