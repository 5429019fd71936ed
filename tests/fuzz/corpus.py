r"""The kept inputs, as text that a reviewer can read: escaped like a Python string, a new line behind every `\n`."""

from pathlib import Path

CORPUS = Path(__file__).parents[1] / "data/gateway/corpus"


def read(path: Path) -> bytes:
    """Return the bytes that a file of the corpus stands for."""
    return path.read_text("ascii").replace("\n", "").encode().decode("unicode_escape").encode("latin-1")


def written(data: bytes) -> str:
    """Return the text that stands for these bytes."""
    return data.decode("latin-1").encode("unicode_escape").decode().replace("\\n", "\\n\n")


def inputs(target: str) -> dict[str, Path]:
    """Return the files of a target by name."""
    return {path.stem: path for path in sorted((CORPUS / target).glob("*.txt"))}
