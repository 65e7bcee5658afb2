#!/bin/sh
# Puts the binaries of the images into the directory $1: those in prebuilt/, where whoever builds the
# images has made them already, else it compiles them.
set -eu
out=$1
binaries="core-server corectl devices host_sensors automation notifications"
mkdir -p "$out"
if [ -d prebuilt ]; then
    cp prebuilt/* "$out"
    exit
fi
packages=
for binary in $binaries; do packages="$packages --package $binary"; done
# shellcheck disable=SC2086  # several words are meant
cargo build --release --locked $packages
for binary in $binaries; do cp "target/release/$binary" "$out"; done
