"""Where suites are: by name inside the package or beside it in a checkout, or by path."""

from __future__ import annotations

from pathlib import Path

from niffbench.errors import UsageError, did_you_mean

MAX_SUITE_BYTES = 1_000_000


def folders() -> list[Path]:
    """Where suites are looked for by name: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).parent.parent
    return [folder for folder in (package / "suites", package.parent / "suites") if folder.is_dir()]


def available() -> dict[str, Path]:
    """The named suites and their files, sorted by name."""
    suites: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.toml")):
            suites.setdefault(path.stem, path)
    return dict(sorted(suites.items()))


def find(name_or_path: str) -> Path:
    """The file of a suite given by name or by path.

    Raises:
        UsageError: when there is none, naming the suites there are.
    """
    suites = available()
    if name_or_path in suites:
        return suites[name_or_path]
    path = Path(name_or_path)
    try:
        if path.is_file():
            if path.suffix == ".toml" or "/" in name_or_path:
                return path
            what = "its name should end in .toml"
        elif path.is_dir():
            what = "is a directory"
        elif not name_or_path.endswith(".toml") and "/" not in name_or_path:
            near = [*suites, *(file.name for file in Path().glob("*.toml"))]
            raise UsageError(f"no suite named '{name_or_path}'{did_you_mean(name_or_path, near)}")
        else:
            what = "there is no such file"
    except (OSError, ValueError):  # a name too long, or with a NUL
        what = "there is no such file"
    raise UsageError(f"suite file {name_or_path}: {what}")


def read(path: Path, what: str = "a suite") -> str:
    """The text of a file that should be ``what``.

    Raises:
        UsageError: for one too large, unreadable or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UsageError(f"{path}: is not a regular file, so not {what}")
        with path.open("rb") as file:
            content = file.read(MAX_SUITE_BYTES + 1)
        if len(content) > MAX_SUITE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_SUITE_BYTES:,} bytes, so not {what}")
        return content.decode("utf-8-sig")  # some editors put a byte order mark before it
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from error
