"""Puts stand-ins beside torch for the CUDA libraries that its plain build is linked against.

Owns: finding which shared libraries and symbols are missing, and compiling libraries that have them. Refuses: to
pretend. Every stand-in reports that there is no device, so torch finds no GPU and quietly uses the CPU; nothing is done
for a torch that needs no CUDA, and nothing twice.
Trap: the loader checks the versions of symbols too, so each stand-in carries the versions that torch asks for.
"""

import re
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# The driver's own library is opened at run time only, and its absence is what tells torch that there is no GPU.
_DRIVER = "libcuda.so.1"
_RUNTIME = "libcudart.so.13"
_NVSHMEM = "libnvshmem_host.so.3"
_NO_DEVICE = 100
_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nccl|nvrtc|nvshmem)[^\]]*)\]")
_UNDEFINED = re.compile(r"\bU ((?:__cuda|cu[a-zA-Z]|nccl|nvrtc|nvshmem)\w+)(?:@(\S+))?$", re.MULTILINE)
_TEXTS = ("ErrorName", "ErrorString", "ResultString")


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A function that some library of torch's calls; `version` is empty for an unversioned one."""

    name: str
    version: str

    @property
    def library(self) -> str:
        """The library that torch expects it in: CUDA's version names are library names."""
        if not self.version:
            return _RUNTIME
        return self.version if ".so." in self.version else _NVSHMEM


def needed(dynamic_section: str) -> set[str]:
    """CUDA libraries in the output of `readelf -d`."""
    return set(_NEEDED.findall(dynamic_section))


def undefined(symbol_table: str) -> set[Symbol]:
    """CUDA functions in the output of `nm -D --undefined-only --with-symbol-versions`."""
    return {Symbol(name, version) for name, version in _UNDEFINED.findall(symbol_table)}


def source_of(symbols: Iterable[Symbol]) -> str:
    """C for a library in which every function fails, or names the failure."""
    names = sorted({symbol.name for symbol in symbols})
    return "\n".join(["int no_cuda;", *(_function(name) for name in names), ""])


def _function(name: str) -> str:
    if name.endswith(_TEXTS):
        return f'const char *{name}(void) {{ return "no CUDA device"; }}'
    return f"long {name}(void) {{ return {_NO_DEVICE}; }}"


def version_script_of(symbols: Iterable[Symbol]) -> str:
    """The linker's version script; empty when no symbol has a version."""
    names: Mapping[str, list[str]] = defaultdict(list)
    for symbol in sorted(symbols):
        if symbol.version:
            names[symbol.version].append(symbol.name)
    return "\n".join(f"{version} {{ global: {'; '.join(each)}; }};" for version, each in names.items())


def _compile(library: Path, symbols: Iterable[Symbol]) -> None:
    source, script = library.with_name(f"{library.name}.c"), library.with_name(f"{library.name}.map")
    source.write_text(source_of(symbols))
    script.write_text(version_script_of(symbols))
    versions = [f"-Wl,--version-script={script}"] if script.stat().st_size else []
    name = f"-Wl,-soname,{library.name}"
    # Functions like cudaMalloc are known to gcc by other signatures than ours: -w.
    _output("gcc", "-shared", "-fPIC", "-w", name, *versions, str(source), "-o", str(library))
    source.unlink()
    script.unlink()


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Write the missing libraries into torch's own folder of libraries, where its run path looks first."""
    folder = Path(sysconfig.get_path("purelib"), "torch", "lib")
    libraries = sorted(str(path) for path in folder.glob("lib*.so*"))
    missing = set[str]().union(*(needed(_output("readelf", "--dynamic", path)) for path in libraries))
    missing -= {_DRIVER, *(Path(path).name for path in libraries)}
    if not missing:
        return
    tables = (_output("nm", "-D", "--undefined-only", "--with-symbol-versions", path) for path in libraries)
    symbols = set[Symbol]().union(*(undefined(table) for table in tables))
    for name in sorted(missing):
        _compile(folder / name, {symbol for symbol in symbols if symbol.library == name})


if __name__ == "__main__":
    main()
