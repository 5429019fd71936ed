"""Throw mutated bytes at the gateway's parsers: `python -m tests.fuzz --seconds 3600`, or `make fuzz SECONDS=3600`.

Coverage-guided by atheris, from the corpus in tests/data/gateway/corpus. Each target gets its share of the time in a
process of its own. What breaks a promise is left in .fuzz/, also as the text that the corpus is written in: make it
small, give it a name, put it there, and the unit tests replay it for ever.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from tests.fuzz import corpus

ROOT = Path(__file__).parents[2]
OUT = ROOT / ".fuzz"
TARGETS = {"inlet": 2, "upstream": 1, "form": 1}
"""And their shares."""
_INPUT_LIMIT_BYTES = 2048
_MEMORY_LIMIT_MIB = 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only this one")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    chosen = asked.target or list(TARGETS)
    shares = sum(TARGETS[target] for target in chosen)
    if asked.here:
        _fuzz(chosen[0], asked.seconds)
    failed = []
    for target in chosen:
        seconds = max(1, asked.seconds * TARGETS[target] // shares)
        print(f"· {target}, {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--target", target, "--seconds", str(seconds)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(target)
    for path in OUT.glob("*-[!.]*"):
        if path.is_file() and not path.suffix:
            path.with_suffix(".txt").write_text(corpus.written(path.read_bytes()))
    if failed:
        print(f"· findings in {', '.join(failed)}: see {OUT.relative_to(ROOT)}/", flush=True)
    return bool(failed)


def _fuzz(target: str, seconds: int) -> None:
    # Only here: replaying the corpus needs no fuzzer.
    import atheris

    with atheris.instrument_imports(include=["matrixinfer.gateway.wire", "matrixinfer.gateway.core"]):
        check = importlib.import_module(f"tests.fuzz.{target}").check
    found = OUT / target
    found.mkdir(parents=True, exist_ok=True)
    for name, path in corpus.inputs(target).items():
        (found / name).write_bytes(corpus.read(path))
    options = (
        f"-max_total_time={seconds}",
        f"-max_len={_INPUT_LIMIT_BYTES}",
        f"-rss_limit_mb={_MEMORY_LIMIT_MIB}",
        "-timeout=20",
        f"-dict={Path(__file__).with_name('http.dict')}",
        f"-artifact_prefix={OUT}/{target}-",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], *options, str(found)], check)
    # Ends the process.
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
