"""The stand-ins for CUDA libraries: read from what binutils prints, written as C and a version script."""

import runpy
from pathlib import Path

STUB = runpy.run_path(str(Path(__file__).parents[3] / "deploy/engines/vllm/stub_cuda.py"))
Symbol, needed, undefined = STUB["Symbol"], STUB["needed"], STUB["undefined"]

DYNAMIC = """
 0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]
 0x0000000000000001 (NEEDED)             Shared library: [libnccl.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libstdc++.so.6]
 0x000000000000000e (SONAME)             Library soname: [libcublas.so.13]
"""
TABLE = """\
                 U cudaMalloc@libcudart.so.13
                 U cublasCreate_v2@libcublas.so.13
                 U ncclGetErrorString
                 U nvshmemx_init@NVSHMEM
                 U memcpy@GLIBC_2.14
"""


def test_only_cuda_libraries_that_are_needed_count():
    assert needed(DYNAMIC) == {"libcudart.so.13", "libnccl.so.2"}


def test_each_symbol_goes_to_the_library_that_its_version_names():
    assert {symbol.name: symbol.library for symbol in undefined(TABLE)} == {
        "cudaMalloc": "libcudart.so.13",
        "cublasCreate_v2": "libcublas.so.13",
        "ncclGetErrorString": "libcudart.so.13",
        "nvshmemx_init": "libnvshmem_host.so.3",
    }


def test_a_stand_in_reports_that_there_is_no_device():
    source = STUB["source_of"]({Symbol("cudaMalloc", "v"), Symbol("cudaGetErrorString", "v")})
    assert "long cudaMalloc(void) { return 100; }" in source
    assert 'const char *cudaGetErrorString(void) { return "no CUDA device"; }' in source


def test_versions_are_kept():
    script = STUB["version_script_of"]({Symbol("a", "v1"), Symbol("b", "v1"), Symbol("c", "")})
    assert script == "v1 { global: a; b; };"
    assert STUB["version_script_of"]({Symbol("c", "")}) == ""
