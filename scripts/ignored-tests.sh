#!/bin/sh
# Prints the names of the tests whose reason to be ignored begins with $1: `nightly` or `figure`. libtest cannot choose by
# reason, so the Makefile hands it these names. None is an error: libtest would take no name for all names.
set -eu
cd "$(dirname "$0")/.."
find src tests/it -name '*.rs' | sort | xargs awk -v start="#[ignore = \"$1: " '
    { line = $0; sub(/^ +/, "", line) }
    index(line, start) == 1 { wanted = 1 }
    wanted && match(line, /fn [a-z0-9_]+/) { print substr(line, RSTART + 3, RLENGTH - 3); wanted = 0; found = 1 }
    END { exit !found }
'
