#!/bin/sh
# image.sh BINARY...: makes an OCI archive of each, target/images/NAME.tar, named localhost/NAME:RELEASE. Asks no registry.
set -eu
cd "$(dirname "$0")/../.."
release=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
mkdir -p target/images
for binary in "$@"; do
  name=$(basename "$binary")
  sh k8s/images/rootfs.sh "$binary" "target/images/$name"
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "target/images/$name" / >/dev/null
  buildah config --user 65532:65532 --entrypoint "[\"/$name\"]" --cmd "" \
    --label "org.opencontainers.image.version=$release" --label "org.opencontainers.image.title=$name" "$container"
  rm -f "target/images/$name.tar"
  # One time for all files: the same tree makes the same image.
  buildah commit --quiet --rm --format oci --timestamp 0 "$container" \
    "oci-archive:target/images/$name.tar:localhost/$name:$release" >/dev/null
  echo "target/images/$name.tar: localhost/$name:$release, $(du -h --apparent-size "target/images/$name.tar" | cut -f 1)"
done
