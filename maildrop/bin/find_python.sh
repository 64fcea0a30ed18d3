# shellcheck shell=sh
# Sourced by the scripts beside it. They set MAILDROP_DIR (the package), MAILDROP_CONFIG_FILE (their own default, may be
# empty) and asked_for (the config file named on the command line, may be empty). It sets config and python.

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
# shellcheck disable=SC1090,SC2030
python=$(
    PYTHON=
    . "$config" >/dev/null 2>&1
    printf %s "$PYTHON"
)
if ! "${python:-none}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
    echo "PYTHON=\"$python\" in $config is no Python 3.10 or newer: using python3" >&2
    python=python3
fi
