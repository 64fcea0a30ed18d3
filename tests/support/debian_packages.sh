#!/bin/sh
# Installs Debian packages that are missing:  debian_packages.sh [--optional] PACKAGE...
# Where it may not, it names the command to say; that is an error unless they are optional (tests say what they skip).

optional=
if [ "$1" = --optional ]; then
    optional=yes
    shift
fi
if ! command -v dpkg-query >/dev/null; then
    echo "This is no Debian: install what these packages hold yourself: $*" >&2
    [ -n "$optional" ]
    exit
fi
missing=
for package in "$@"; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
        *" installed") ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=sudo
    else
        echo "Missing:$missing. As root, say: apt-get install$missing" >&2
        [ -n "$optional" ]
        exit
    fi
fi
# A mail server would ask questions and start; the tests run one of their own.
if ! command -v debconf-set-selections >/dev/null ||
    ! echo "postfix postfix/main_mailer_type select No configuration" | $as_root debconf-set-selections; then
    echo "debconf cannot be told in advance what to answer" >&2
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086    # a list of names
$as_root apt-get update --quiet=2 && $as_root apt-get install --quiet=2 --yes --no-install-recommends $missing >/dev/null
