"""Read weights from untrusted files without running any code in them.

Three formats are supported: safetensors; files of `torch.save`, which are read with `weights_only`; and the TorchScript
archives in which OpenAI released its models. TorchScript archives contain code, which `torch.jit.load` would compile.
This module reads only their tensors, from the data.pkl in the zip file. Its unpickler creates tensors, containers and
empty stand-ins for modules, and refuses everything else.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_DTYPES: Mapping[str, torch.dtype] = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}

_REFUSED = "refused, because reading it would run code that it contains"


def read_state(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, by name, onto the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, contains no weights, or contains code. The code is not run.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}': the file does not exist")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged, perhaps by an incomplete download ({error})") from error
    if not zipfile.is_zipfile(path):
        return _read_torch(path)
    with zipfile.ZipFile(path) as archive:
        # torch.save writes no code
        is_script = any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
        return _read_script(archive, path) if is_script else _read_torch(path)


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about the pickle protocol, which do not matter here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message advises to run the code anyway, so only the name in it is reported
        if program := re.search(r"(?:GLOBAL|instantiate class|func|operand) ([\w.]+)", str(error)):
            raise ValueError(f"{path}: {_REFUSED} ({program[1]})") from error
        raise ValueError(f"{path}: damaged, or not a file of weights") from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: damaged, or not a file of weights ({_first_line(error)})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # a checkpoint of open_clip, which also contains the optimizer
    is_state = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not is_state:
        raise ValueError(f"{path}: does not map names to weights")
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _read_script(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path}: damaged: contains {len(pickles)} data.pkl files instead of one")
    folder = pickles[0].removesuffix("data.pkl")
    try:
        with archive.open(pickles[0]) as stream:
            module = _Unpickler(stream, lambda key: _read_entry(archive, f"{folder}data/{key}")).load()
        if not isinstance(module, _Blank):
            raise pickle.UnpicklingError("contains no module")
        return dict(_tensors(module, ""))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # unpickling a damaged file can raise anything
        raise ValueError(f"{path}: damaged ({_first_line(error)})") from error


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytearray:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"refused: {name} is compressed, which TorchScript archives never are")
    return bytearray(archive.read(entry))


class _Blank:
    """A stand-in for a module: it has the module's attributes, but no methods."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: Mapping[str, object] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("damaged: the state of a module is not a dictionary of names")
        self.attributes = state


def _tensors(module: _Blank, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Blank):
            yield from _tensors(value, f"{prefix}{name}.")


class _Unpickler(pickle.Unpickler):
    """Creates tensors, containers and stand-ins for modules only; `read` returns the bytes of a storage by its key."""

    def __init__(self, stream: Any, read: Callable[[str], bytearray]) -> None:
        super().__init__(stream)
        self._read = read
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The harmless replacement of a global; the real object is never imported."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "__torch__" or module.startswith("__torch__."):
            return _Blank
        replacements = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): _first,
        }
        if (module, name) not in replacements:
            raise pickle.UnpicklingError(f"{_REFUSED} ({module}.{name})")
        return replacements[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """Read a storage as a one-dimensional tensor."""
        kind, dtype, key, _device, num_elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"refused: a reference to '{kind}', not to a storage of tensors")
        if key not in self._storages:
            data = self._read(key)
            if len(data) != num_elements * dtype.itemsize:
                size = num_elements * dtype.itemsize
                raise pickle.UnpicklingError(f"damaged: storage {key} has {len(data)} bytes instead of {size}")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_flags: object) -> Tensor:
    """A view of a storage; torch raises if the view exceeds the storage."""
    if math.prod(size) == 0:
        return storage.new_empty(tuple(size))
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _first(value: object, *_type: object) -> object:
    return value
