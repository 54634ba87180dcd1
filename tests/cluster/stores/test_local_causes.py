import errno
import os
from pathlib import Path

import pytest

from cluster.stores.errors import (
    AccessDeniedError,
    StorageError,
    StorageFullError,
    UnreachableError,
    UnsupportedError,
)
from cluster.stores.local_causes import explained

CAUSES: dict[type[Exception], list[int]] = {
    AccessDeniedError: [errno.EACCES, errno.EPERM, errno.EROFS],
    StorageFullError: [errno.ENOSPC, errno.EDQUOT],
    UnreachableError: [errno.ESTALE, errno.EIO, errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT],
    UnsupportedError: [errno.EFBIG],
    StorageError: [errno.EBUSY, errno.ETXTBSY, errno.EMFILE, errno.ENOTEMPTY, errno.ENOMEM],
    ValueError: [errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EILSEQ],
    FileNotFoundError: [errno.ENOENT],
}


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind, numbers in CAUSES.items() for number in numbers])
def test_each_cause_is_its_own_error_of_one_line(kind: type[Exception], number: int) -> None:
    with pytest.raises((OSError, ValueError)) as failed, explained(Path("/runs/a.json"), "write 3 bytes"):
        raise OSError(number, os.strerror(number), "/runs/.new.tmp")
    assert type(failed.value) is kind
    assert str(failed.value).startswith(f"'/runs/a.json': cannot write 3 bytes ({os.strerror(number)})")
    assert "\n" not in str(failed.value)
    if number not in (errno.ENOMEM, errno.ENOENT):
        assert str(failed.value).partition("). ")[2], "what to do"


@pytest.mark.parametrize("name", ["null\0character", "surrogate\ud800", "two\nlines\0"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="Use another name") as failed, explained(tmp_path / name, "read"):
        (tmp_path / name).read_bytes()
    message = str(failed.value)
    assert message.startswith(f"{str(tmp_path / name)!r}: cannot read ("), message
    assert message.isprintable()


def test_errors_that_are_explained_already_stay() -> None:
    error = UnsupportedError("neither links nor locks")
    with pytest.raises(UnsupportedError) as failed, explained(Path("/x"), "write"):
        raise error
    assert failed.value is error
