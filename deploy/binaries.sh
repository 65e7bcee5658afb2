#!/bin/sh
# Lays out in $2 what the images are made of: binaries, plugins as a core's plugins_dir holds them, and
# empty directories that volumes are mounted on. The binaries are those in the directory $1, as
# `cargo xtask dist` makes them; without $1 they are compiled.
set -eu
built=$1
out=$2
plugins="automation devices host_sensors notifications"
binaries="core-server corectl $plugins"
if [ -z "$built" ]; then
    packages=
    for binary in $binaries; do packages="$packages --package $binary"; done
    # shellcheck disable=SC2086  # several words are meant
    cargo build --profile dist --locked $packages
    built=target/dist
fi
mkdir -p "$out/bin" "$out/plugins"
for binary in $binaries; do cp "$built/$binary" "$out/bin"; done
for plugin in $plugins; do
    mkdir "$out/plugins/$plugin"
    cp "$out/bin/$plugin" "examples/home/$plugin/plugin.toml" "$out/plugins/$plugin"
done
mkdir -p -m 0700 "$out/volumes/data"
mkdir -p "$out/volumes/plugins"
