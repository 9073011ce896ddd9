"""Names of files: which are URLs, and what people are shown of them."""

import sys

import pytest

from ecrec.errors import ConfigurationError
from ecrec.urls import file_system, is_url, local_path, reason_of, shown, without_query


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/day_0", "s3://bucket/day_0"),
        ("sftp://me:secret@host/day_0", "sftp://***@host/day_0"),
        ("sftp://me:se@cret@host/a@b", "sftp://***@host/a@b"),
        ("simplecache::sftp://me:secret@host/x", "simplecache::sftp://***@host/x"),
        ("https://host/day_0.gz?X-Amz-Signature=secret&X-Amz-Date=1", "https://host/day_0.gz?***"),
        ("abfs://c/x.parquet?sv=1&sig=secret", "abfs://c/x.parquet?***"),
        ("s3://bucket/day_?", "s3://bucket/day_?"),
        ("/a/b", "/a/b"),
        ("cannot open 'https://me:secret@h/x?sig=secret': 403", "cannot open 'https://***@h/x?*** 403"),
    ],
)
def test_passwords_and_signatures_are_not_shown(name: str, expected: str) -> None:
    assert shown(name) == expected and "secret" not in shown(name)


def test_names_that_are_no_urls_are_local_paths() -> None:
    for name in ("a", "/a", "file:///a", "FILE:///a", "file://localhost/a", "c:", "a:b"):
        assert not is_url(name)
    assert [local_path(name) for name in ("a", "file:///a", "file://localhost/a")] == ["a", "/a", "/a"]
    for name in ("s3://b/x", "memory://x", "simplecache::s3://b/x"):
        assert is_url(name)
    with pytest.raises(ConfigurationError, match="expected file:///PATH, with an absolute path"):
        local_path("file://host/x")


def test_the_end_of_a_name_is_before_its_query() -> None:
    assert without_query("https://h/x.bin?sig=a.npy") == "https://h/x.bin"
    assert without_query("s3://h/day_?") == "s3://h/day_?" and without_query("x?a=1") == "x?a=1"


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigurationError, match=r"'s3://\*\*\*@b/x': only local .* \"ecrec\[data\]\""):
        file_system("s3://me:secret@b/x", "data")


def test_a_reason_is_what_the_system_says_without_secrets() -> None:
    assert reason_of(FileNotFoundError(2, "No such file")) == "No such file"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(OSError("https://me:secret@h/x failed")) == "https://***@h/x failed"
    assert len(reason_of(OSError("x" * 10_000))) == 500
