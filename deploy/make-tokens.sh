#!/bin/sh
# Makes a token for each plugin named as an argument, in /tokens/NAME/token, unless it is there.
# Readable by the user of the containers only.
set -eu
umask 077
for plugin in "$@"; do
    file=/tokens/$plugin/token
    if [ ! -s "$file" ]; then
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$file"
        echo "made a token for $plugin"
    fi
    chown -R 10001:10001 "/tokens/$plugin"
done
