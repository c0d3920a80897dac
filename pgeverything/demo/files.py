"""The demo's input: the standard library's files, and broken ones where it ships none."""

from __future__ import annotations

import sysconfig
from pathlib import Path

_INSTALLED = frozenset({"site-packages", "dist-packages", "__pycache__"})

_BROKEN = {
    "print_statement.py": b'def greet(name):\n    return name\n\nprint "hello", greet("world")\n',
    "indentation.py": b"class Fine:\n    pass\n\ndef odd():\n        first = 1\n    return first\n",
    "unclosed.py": b"def fine():\n    return 1\n\nvalues = [1, 2, 3\n",
    "encoding_name.py": b"# -*- coding: utf-42 -*-\ndef fine():\n    return 1\n",
    "encoding.py": b'def fine():\n    return 1\n\nname = "caf\xe9"\n',
    "tabs.py": b"def fine():\n    if True:\n        a = 1\n\tb = 2\n",
}


def library() -> Path:
    """Return where the running interpreter has its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def library_files() -> list[Path]:
    """Return every Python file of the standard library, without what is installed beside it."""
    root = library()
    return sorted(
        path for path in root.rglob("*.py") if path.is_file() and not _INSTALLED & set(path.relative_to(root).parts)
    )


def package(path: Path) -> str:
    """Return the top-level package or module that a file belongs to."""
    root = library()
    return path.relative_to(root).parts[0].removesuffix(".py") if path.is_relative_to(root) else path.parent.name


def ships_broken_files() -> bool:
    """Whether the interpreter came with its test suite, some of whose files are syntax errors on purpose."""
    return (library() / "test" / "test_grammar.py").is_file()


def write_broken_files(folder: Path) -> list[Path]:
    """Write a few files that are no Python and return them."""
    for name, source in _BROKEN.items():
        (folder / name).write_bytes(source)
    return [folder / name for name in _BROKEN]


def spread(files: list[Path], most: int) -> list[Path]:
    """Return at most so many of the files, evenly spread."""
    step = max(len(files) / most, 1.0)
    return [files[int(index * step)] for index in range(min(most, len(files)))]
