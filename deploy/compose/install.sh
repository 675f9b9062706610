# Install clawdbot's wheel into a virtual environment and leave out what only building needs:
#   sh install.sh ENVIRONMENT FOLDER_OF_THE_WHEEL
set -eu
"$1/bin/pip" install --quiet --no-deps "$2"/*.whl
"$1/bin/pip" uninstall --quiet --yes setuptools pip
rm -f "$1"/bin/activate* "$1"/bin/Activate.ps1
# Compiled once, here: the containers' file system is read-only.
find "$1" -name __pycache__ -prune -exec rm -rf {} +
"$1/bin/python" -m compileall -q -j 0 "$1/lib"
