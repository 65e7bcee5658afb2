#!/bin/sh
# Runs the plugin in its virtual environment, with the generated stubs (README.md makes both).
# A core starts its children in their data directories, hence the full paths.
here=$(cd "$(dirname "$0")" && pwd) || exit 78
PYTHONPATH=$here/stubs exec "$here/.venv/bin/python" "$here/plugin.py"
