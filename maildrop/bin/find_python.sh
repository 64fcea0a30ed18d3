# shellcheck shell=sh
# Sourced by the scripts beside it. They set MAILDROP_DIR (the package), MAILDROP_CONFIG_FILE (their own default, may be
# empty) and asked_for (the config file named on the command line, may be empty). It sets config and python.

is_recent_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

config=${asked_for:-${MAILDROP_CONFIG:-$MAILDROP_CONFIG_FILE}}
if [ -z "$config" ]; then
    config=$MAILDROP_DIR/config
    [ -f "$config" ] || config=$(dirname -- "$MAILDROP_DIR")/config
fi
case $config in
    /*) ;;
    *) config=$PWD/$config ;;
esac
if [ ! -f "$config" ] || [ ! -r "$config" ]; then
    echo "Error: cannot read the config file $config" >&2
    exit 1
fi

# Only PYTHON is taken from the file here, in a subshell; everything else is parsed and checked by Python.
python=$(
    exec 3>&1 >/dev/null 2>&1
    PYTHON=
    trap 'printf %s "$PYTHON" >&3' EXIT    # also where sh gives up on a later line: Python shall tell which one
    # shellcheck source=/dev/null    # any config file
    . "$config"
)
if ! is_recent_python "$python"; then
    if ! is_recent_python python3; then
        echo "Error: neither PYTHON=\"$python\" in $config nor python3 is Python 3.10 or newer" >&2
        exit 1
    fi
    echo "PYTHON=\"$python\" in $config is no Python 3.10 or newer: using python3" >&2
    python=python3
fi
