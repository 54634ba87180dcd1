import datetime
import logging
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from cluster import telemetry
from cluster.telemetry import Counter, Events, Progress, duration


class Clock:
    """A clock that the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(telemetry, "time", self)

    def monotonic(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "clip"]


def test_progress_logs_rate_and_time_left_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clip")
    clock = Clock(monkeypatch)
    with Progress("fetch", 4000, "images", interval_seconds=5) as progress:
        for _ in range(20):
            clock.now += 1
            progress.update(100)
    assert lines(caplog) == [
        "fetch: 500/4,000 images, 100.0 images/s, 35 s left",
        "fetch: 1,000/4,000 images, 100.0 images/s, 30 s left",
        "fetch: 1,500/4,000 images, 100.0 images/s, 25 s left",
        "fetch: 2,000/4,000 images, 100.0 images/s, 20 s left",
        "fetch: 2,000/4,000 images, 100.0 images/s, 20 s left, in 20 s",
    ]


def test_progress_of_unknown_length_has_no_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clip")
    clock = Clock(monkeypatch)
    with Progress("extract", None, "pages") as progress:
        clock.now += 2
        progress.update()
        progress.update(2)
    assert lines(caplog) == ["extract: 3 pages, 1.5 pages/s, in 2.0 s"]


def test_progress_logs_where_it_stopped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clip")
    clock = Clock(monkeypatch)

    def work() -> None:
        with Progress("shard", 10, "parts"):
            clock.now += 3
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert lines(caplog) == ["shard: 0/10 parts, stopped after 3.0 s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.6, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("storage_kind", ["local", "s3"])
def test_events_are_appended(storage_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    uri = f"{request.getfixturevalue('s3') if storage_kind == 's3' else tmp_path}/run/events.jsonl"
    assert Events(uri).read() == []
    Events(uri).append("stage_began", stage="fetch", num_parts=4)
    Events(uri).append("stage_ended", stage="fetch", reasons={"größe": 3})
    began, ended = Events(uri).read()
    end_time = ended.pop("time")
    assert began.pop("time") <= end_time
    assert began == {"event": "stage_began", "stage": "fetch", "num_parts": 4}
    assert ended == {"event": "stage_ended", "stage": "fetch", "reasons": {"größe": 3}}
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(end_time)
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)


def test_an_event_that_json_cannot_represent_is_refused(tmp_path: Path) -> None:
    events = Events(str(tmp_path / "events.jsonl"))
    with pytest.raises(TypeError):
        events.append("odd", value=object())
    assert events.read() == []


def test_a_counter_outside_ray_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    counter = Counter("clip_outside", "never seen")
    counter.add(3)
    assert counter._counter is None


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_prometheus_reads_counters_of_tasks() -> None:
    counter = Counter("clip_test_images", "images of this test", ("outcome",))

    @ray.remote
    def fetch(number: int) -> None:
        counter.add(0, outcome="never")
        counter.add(number, outcome="kept")

    ray.get([fetch.remote(2), fetch.remote(3)])
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    counts: list[str] = []
    while sum(float(line.rsplit(" ", 1)[1]) for line in counts) < 5 and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(address) as answer:
            text = answer.read().decode()
        counts = [line for line in text.splitlines() if line.startswith("ray_clip_test_images_total{")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in counts) == 5
    assert all('outcome="kept"' in line for line in counts)
