#!/usr/bin/env bash
# Installs the Debian packages that a whole local node needs and this machine lacks. Does nothing where there is
# no apt-get or we are not root: `python -m matrixinfer.devcluster diagnose` then says what is missing.
set -euo pipefail
packages=(containerd runc containernetworking-plugins nftables conntrack iptables iproute2 docker.io gcc libc6-dev procps)
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null && [ "$(id -u)" = 0 ] || exit 0
missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "· installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
