# Sourced by the other scripts, in any POSIX shell. `make_environment FOLDER REQUIREMENT...` creates a virtual environment
# with this project, unless it already exists with the same requirements. It replaces only what it has made itself.

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
    folder=$1
    shift
    wanted="$(cat setup.py) $*"
    if [ -f "$folder/.installed" ] && [ "$(cat "$folder/.installed")" = "$wanted" ]; then
        return
    fi
    if [ -e "$folder" ] && [ ! -e "$folder/.made_by_plsc_mae" ] && [ ! -e "$folder/.installed" ]; then
        echo "$folder exists, but the scripts of plsc_mae have not made it; rename or remove it" >&2
        return 1
    fi
    echo "installing into $folder: $*"
    rm -rf "$folder"
    mkdir "$folder"
    touch "$folder/.made_by_plsc_mae" # also stays if the installation is interrupted
    "$(find_python)" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    printf '%s' "$wanted" >"$folder/.installed"
}
