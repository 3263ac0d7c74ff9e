"""Globs over relative paths."""

from __future__ import annotations

import pytest

from tokenmill.workers.sources.globs import compile_globs, split_fixed


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "b/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "b/c/a.py", True),
        ("b/**", "b/c/a.py", True),
        ("b/**", "b", False),
        ("b/**/a.py", "b/a.py", True),
        ("b/**/a.py", "bb/a.py", False),
        ("?.py", "a.py", True),
        ("?.py", "/.py", False),
        ("[a-c].py", "b.py", True),
        ("[!a-c].py", "b.py", False),
        ("[!a].py", "/.py", False),
        ("[]].py", "].py", True),
        ("[a", "[a", True),
        ("a+b(1).py", "a+b(1).py", True),
        ("a***b", "axxb", True),
        ("./x/*.py", "x/a.py", True),
        ("*", "a\nb", True),
    ],
)
def test_a_glob_matches_as_in_a_shell(pattern: str, path: str, matches: bool) -> None:
    compiled = compile_globs([pattern])
    assert compiled is not None
    assert (compiled.fullmatch(path) is not None) is matches


def test_no_patterns_are_no_expression() -> None:
    assert compile_globs([]) is None


def test_the_fixed_folder_ends_before_the_first_wildcard() -> None:
    assert split_fixed("/data/raw/2024-*/x.tar") == ("/data/raw", "2024-*/x.tar")
    assert split_fixed("*.tar") == ("", "*.tar")
