#!/usr/bin/env bash
# Writes a root file system with Python 3.11 and nothing else (no shell, no package manager) to stdout as a tar,
# from Debian 12's own signed packages:  deploy/images/base.sh | docker import - matrixinfer/python-base:3.11
# Needs a Debian 12 host and a fresh `apt-get update`. Any image with python3.11 on PATH can stand in: make images BASE=…
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/debs" "$work/root"
chown _apt "$work/debs"
packages=(
    base-files netbase tzdata media-types ca-certificates libc6 libgcc-s1 libstdc++6 libgomp1 libcrypt1 zlib1g
    libbz2-1.0 liblzma5 libexpat1 libffi8 libssl3 libsqlite3-0 libuuid1
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
)
(cd "$work/debs" && apt-get download -qq "${packages[@]}" >&2)
cd "$work/root"
mkdir -p usr/{bin,sbin,lib,lib64} etc/ssl/certs home/nonroot proc sys dev run
mkdir -m 1777 tmp
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$folder"; done
for deb in ../debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink \
        --exclude='./usr/share/'{doc,man,locale,lintian}'/*' \
        --exclude='./usr/lib/*/gconv/*' --exclude='./usr/share/zoneinfo/'{right,posix}'/*'
done
ln -s python3.11 usr/bin/python3
ln -s python3.11 usr/bin/python
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
printf 'root:x:0:0::/root:/sbin/nologin\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n' >etc/passwd
printf 'root:x:0:\nnonroot:x:65532:\n' >etc/group
chown 65532:65532 home/nonroot
ldconfig -r .
tar -c --numeric-owner --sort=name --mtime=@1700000000 .
