"""Test files of weights in every format, and files that are damaged or contain code."""

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model.weights.convert import export_state
from pipeline.model.weights.weight_files import read_state
from tests.pipeline.model.weights.test_convert import clip

STATE = export_state(clip(), "openai")


class Node(nn.Module):
    """A module that holds parameters and other modules."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def as_module(state: dict[str, Tensor]) -> Node:
    root = Node()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        node: nn.Module = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, Node())
            node = node.get_submodule(part)
        if tensor.is_floating_point():
            node.register_parameter(leaf, nn.Parameter(tensor))
        else:
            node.register_buffer(leaf, tensor)
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive like OpenAI's: half precision, norms in float32, and numbers beside the weights."""
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    half = {name: t if "ln_" in name or not t.is_floating_point() else t.half() for name, t in STATE.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but its archives still exist
        torch.jit.trace(as_module(half), torch.zeros(2), check_trace=False).save(path)  # type: ignore[no-untyped-call]
    return path


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in expected)


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "weights.safetensors")
    assert_same(read_state(tmp_path / "weights.safetensors"), STATE)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_files_of_torch_save(tmp_path: Path, is_zip: bool, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(STATE), tmp_path / "weights.pt", _use_new_zipfile_serialization=is_zip)
    assert_same(read_state(tmp_path / "weights.pt"), STATE)


def test_openais_archives(archive: Path) -> None:
    found = read_state(archive)
    assert found["visual.conv1.weight"].dtype == torch.float16
    half = {name: t if "ln_" in name or not t.is_floating_point() else t.half() for name, t in STATE.items()}
    assert_same(found, half)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "script.pt"])
def test_an_incomplete_download_raises(tmp_path: Path, archive: Path, kind: str, share: float) -> None:
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, path)
    elif kind == "pt":
        torch.save(STATE, path)
    else:
        path.write_bytes(archive.read_bytes())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"{path.name}: damaged"):
        read_state(path)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*the file does not exist"):
        read_state(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {3: torch.zeros(2)}, torch.zeros(2)])
def test_files_without_weights_raise(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: does not map names to weights"):
        read_state(tmp_path / "weights.pt")


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def rewritten(archive: Path, target: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a copy of the archive, with other content for some of its files."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w", compression) as sink:
        for name in source.namelist():
            sink.writestr(name, changes.get(name.split("/", 1)[1], source.read(name)))
    return target


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "script"])
def test_code_is_refused_and_not_run(tmp_path: Path, archive: Path, kind: str) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    state = {**STATE, "visual.proj": Code(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state["visual.proj"]))
    elif kind == "script":
        rewritten(archive, path, {"data.pkl": pickle.dumps(state["visual.proj"], protocol=2)})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"weights\.pt: refused, because reading it would run code"):
        read_state(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Code(trace)))  # noqa: S301
    assert trace.exists(), "the code of this test does nothing"


def test_other_globals_are_refused(tmp_path: Path, archive: Path) -> None:
    """`torch.load` and `torch.hub.load` would run code indirectly."""
    for module, name in (("torch", "load"), ("torch.hub", "load"), ("builtins", "getattr"), ("torch._utils", "x")):
        data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."
        path = rewritten(archive, tmp_path / "weights.pt", {"data.pkl": data})
        with pytest.raises(ValueError, match=rf"run code that it contains \({module}\.{name}\)"):
            read_state(path)


def test_archives_with_invalid_storages_raise(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match="storage 0 has 3 bytes instead of"):
        read_state(rewritten(archive, path, {"data/0": b"abc"}))
    with pytest.raises(ValueError, match=r"data/\d+ is compressed"):
        read_state(rewritten(archive, path, {}, zipfile.ZIP_DEFLATED))


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_gives_other_weights_or_an_error(archive: Path, position: float, byte: int) -> None:
    with zipfile.ZipFile(archive) as source:
        name = next(name for name in source.namelist() if name.endswith("/data.pkl"))
        data = bytearray(source.read(name))
    data[int(position * len(data))] = byte
    target = archive.with_name("changed.pt")
    rewritten(archive, target, {"data.pkl": bytes(data)})
    with contextlib.suppress(ValueError):
        assert all(isinstance(tensor, Tensor) for tensor in read_state(target).values())


def test_a_tensor_outside_its_storage_raises(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        name = next(name for name in source.namelist() if name.endswith("/data.pkl"))
        data = bytearray(source.read(name))
    data[data.index(b"K\x00", data.index(b"Q")) + 1] = 100  # the offset (BININT1) after the first storage (BINPERSID)
    with pytest.raises(ValueError, match="damaged"):
        read_state(rewritten(archive, tmp_path / "weights.pt", {"data.pkl": bytes(data)}))
