# Sourced by the other scripts. `make_environment FOLDER REQUIREMENT...` creates a virtual environment with this project,
# unless it already exists with the same requirements.

find_python() {
    for name in python3.12 python3.11 python3.10 python3.13 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.10 or newer found; install one, e.g. apt-get install python3 python3-venv" >&2
    return 1
}

make_environment() {
    local folder=$1 wanted stamp
    shift
    wanted="$(cat setup.py) $*"
    stamp="$folder/.installed"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    echo "installing into $folder: $*"
    rm -rf "$folder"
    "$(find_python)" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    # OpenCV's wheel needs libGL, which machines without a display lack. The headless wheel has the same module.
    if ! "$folder/bin/python" -c 'import cv2' 2>/dev/null; then
        "$folder/bin/python" -m pip uninstall --quiet --yes opencv-python
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check opencv-python-headless
    fi
    printf '%s' "$wanted" >"$stamp"
}
