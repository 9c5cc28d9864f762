#!/bin/sh
# rootfs.sh BINARY DIR: makes in DIR the root file system of an image that holds one program: the binary, its loader and
# the libraries that it is linked with, the certificates of the usual authorities, and a user. No shell, nothing else.
set -eu
binary=$1
root=$2
certificates=/etc/ssl/certs/ca-certificates.crt
[ -f "$certificates" ] || { echo "$certificates is missing: install ca-certificates" >&2; exit 1; }

rm -rf "$root"
install -D -m 0755 "$binary" "$root/$(basename "$binary")"
# `name => path (address)`, and the loader as `path (address)`.
ldd "$binary" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
  install -D -m 0755 "$library" "$root$library"
done
install -D -m 0644 "$certificates" "$root$certificates"
echo "nonroot:x:65532:65532:nonroot:/:/sbin/nologin" >"$root/etc/passwd"
echo "nonroot:x:65532:" >"$root/etc/group"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
