"""The commands as users type them, and what the server has afterwards, asked without quirks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.snapshots.snapshot import Snapshot, tags, versions
from tests.faults.stores.inputs import copy_folder

RAY = ("--session.address=local", "--session.num_cpus=4", "--session.object_store_gib=0.2")
TRAINING = (
    *("--train.global_batch_size=16", "--train.epochs=2", "--train.warmup_steps=2", "--train.precision=fp32"),
    *("--train.shuffle_row_groups=2", "--train.chunk_size=16", "--train.checkpoint_every_steps=2"),
)
NUM_STEPS = 8
KEPT_STEPS = [6, 8]
"""Steps of the two checkpoints that training keeps."""
_HIDDEN = re.compile(r"(^|/)\.")


@dataclass(frozen=True)
class Place:
    """Where one command finds its inputs and leaves its outputs, and the server without quirks."""

    server: Any
    """A client of boto3 of the server itself."""
    bucket: str
    prefix: str
    """Of the outputs."""

    @property
    def inputs(self) -> str:
        return f"s3://{self.bucket}/inputs"

    @property
    def output(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def files(self, folder: str = "") -> dict[str, bytes]:
        """The visible files below a folder of the outputs, by name."""
        prefix, found = f"{self.prefix}/{folder}", {}
        for page in self.server.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                if not _HIDDEN.search(entry["Key"]):
                    body = self.server.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"]
                    found[entry["Key"].removeprefix(prefix).lstrip("/")] = body.read()
        return found


@dataclass(frozen=True)
class Command:
    """One command."""

    words: Callable[[Place], Sequence[str]]
    """What follows `python -m jobs.`."""
    result: Callable[[Place, str], object]
    """What the command has made, from the server and from standard output: equal on every store."""
    copied: str = ""
    """The input that is copied into the outputs before, because the command changes it."""
    unwanted: str = r"snapshots/v\d+\.json|results\.json|sizes\.json|result\.json|refs/tags/"
    """A regular expression for new files that must not be there after the command was refused."""

    def prepare(self, place: Place) -> None:
        """Make what the command changes."""
        if self.copied:
            copy_folder(place.server, place.bucket, f"inputs/{self.copied}", f"{place.prefix}/{self.copied}")

    def begun(self, place: Place, before: Mapping[str, bytes]) -> list[str]:
        """The files that a refused command should not have made visible or changed."""
        now = place.files()
        new = [name for name in now if now[name] != before.get(name) and re.search(self.unwanted, name)]
        lost = [name for name in before if name not in now]
        broken = [name for name, data in now.items() if _is_checkpoint(name) and not _is_whole(now, name, data)]
        return sorted({*new, *lost, *broken})


def _import(place: Place, source: str = "pairs") -> Sequence[str]:
    options = (f"--input={place.inputs}/{source}", f"--output={place.output}/run", f"--dataset={place.output}/set")
    return "import_pairs", *options, *RAY


def _curate(place: Place) -> Sequence[str]:
    options = (f"--crawl={place.inputs}/crawl", f"--output={place.output}/run", "--num_buckets=1")
    return "curate", *options, f"--dataset={place.output}/set", *RAY


def _pretrain(place: Place) -> Sequence[str]:
    return "pretrain", f"--snapshot={place.inputs}/snapshot", f"--output={place.output}", *TRAINING, *RAY


def _benchmark(place: Place) -> Sequence[str]:
    options = (f"--model={place.inputs}/model", f"--datasets={place.inputs}/sets", f"--output={place.output}")
    return "benchmark", *options, "--digits=false", *RAY


def _reading(verb: str, *options: str) -> Callable[[Place], Sequence[str]]:
    return lambda place: ("snapshot", verb, f"{place.inputs}/versions", *options)


def _writing(verb: str, name: str, *options: str) -> Callable[[Place], Sequence[str]]:
    return lambda place: (
        *("snapshot", verb, f"{place.output}/{name}"),
        *(option.format(inputs=place.inputs) for option in options),
    )


def _export(place: Place) -> Sequence[str]:
    return "snapshot", "export", f"{place.inputs}/versions", f"--output={place.output}/tars", *RAY


def _snapshots(place: Place, _: str) -> object:
    uri = f"{place.output}/set"
    found = [Snapshot.open(uri, name) for name in versions(uri)]
    return [(snapshot.name, snapshot.snapshot_id, snapshot.num_rows, snapshot.verify()) for snapshot in found]


def _trained(place: Place, _: str) -> object:
    files = place.files()
    complete = [name for name, data in files.items() if _is_checkpoint(name) and _is_whole(files, name, data)]
    steps = [int(name.split("/")[1].removeprefix("step-")) for name in complete]
    model = {name: _digest(data) for name, data in files.items() if name.startswith("model/")}
    losses = [json.loads(line)["loss"] for line in files["metrics.jsonl"].splitlines()]
    return {
        "kept": sorted(steps)[-2:],
        "num_steps": json.loads(files["result.json"])["num_steps"],
        **model,
        "loss": losses,
    }


def _scores(place: Place, _: str) -> object:
    files = place.files()
    tables = {name: _digest(data) for name, data in files.items() if name.startswith("predictions/")}
    return {"scores": json.loads(files["results.json"])["scores"], **tables}


def _printed(place: Place, out: str) -> object:
    return out.replace(place.output, "URI").replace(place.inputs, "URI")


def _tars(place: Place, out: str) -> object:
    return _printed(place, out), {
        name: _digest(data) for name, data in place.files("tars").items() if name[0].isdigit()
    }


def _tagged(place: Place, out: str) -> object:
    return out, tags(f"{place.output}/versions")


def _taken_down(place: Place, out: str) -> object:
    uri = f"{place.output}/versions"
    return out, {name: Snapshot.open(uri, name).num_taken_down for name in versions(uri)}


def _compacted(place: Place, out: str) -> object:
    snapshot = Snapshot.open(f"{place.output}/hidden")
    return out, snapshot.name, snapshot.snapshot_id, snapshot.num_taken_down, snapshot.verify()


def _collected(place: Place, out: str) -> object:
    return _printed(place, out), sorted(place.files("versions"))


COMMANDS: Mapping[str, Command] = {
    "import": Command(_import, _snapshots),
    "curate": Command(_curate, _snapshots),
    "pretrain": Command(_pretrain, _trained),
    "benchmark": Command(_benchmark, _scores),
    "list": Command(_reading("list"), _printed),
    "show": Command(_reading("show"), _printed),
    "verify": Command(_reading("verify"), _printed),
    "diff": Command(_reading("diff", "--version=v00000001"), _printed),
    "export": Command(_export, _tars),
    "tag": Command(_writing("tag", "versions", "--tag=good"), _tagged, "versions"),
    "tombstone": Command(_writing("tombstone", "versions", "--urls={inputs}/urls"), _taken_down, "versions"),
    "compact": Command(_writing("tombstone", "hidden", "--compact=true"), _compacted, "hidden"),
    "gc": Command(
        _writing("gc", "versions", "--keep_last=1", "--grace_hours=0", "--delete=true"), _collected, "versions"
    ),
    "status": Command(lambda place: ("status", f"{place.inputs}/run"), _printed),
}
READING = ("list", "show", "verify", "diff", "status")
WRITING = tuple(name for name in COMMANDS if name not in READING)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoints/") and name.endswith("/manifest.json")


def _is_whole(files: Mapping[str, bytes], manifest: str, data: bytes) -> bool:
    folder = manifest.rpartition("/")[0]
    records = json.loads(data)
    return all(_digest(files.get(f"{folder}/{name}", b"")) == record["sha256"] for name, record in records.items())
