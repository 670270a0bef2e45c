#!/bin/sh
# Puts the ONNX Runtime library the gateway loads into lib/, taken out of the onnxruntime wheel and checked by digest.
# Needs Python 3 with pip. Does nothing when the right library is already there.
#
#   scripts/fetch-onnxruntime.sh [directory]        default: lib
set -eu

version=1.28.0
into=${1:-lib}

case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
    platforms="--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64"
    wheel=0a83bdb70d143cede762b677789bf2a7acca54b3fb82565601d5c30695aa933c
    inside=libonnxruntime.so.$version name=libonnxruntime.so ;;
Linux-aarch64)
    platforms="--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64"
    wheel=4e81a23df16e7acb9d51b06d30cc098e49315ef9180f97bc2221d167b4b04d9c
    inside=libonnxruntime.so.$version name=libonnxruntime.so ;;
Darwin-arm64)
    platforms="--platform macosx_14_0_arm64"
    wheel=26ff0fdd06efb6c155bae95387a09db1a2be89c7a03e4d0bffd5a171cc2826da
    inside=libonnxruntime.$version.dylib name=libonnxruntime.dylib ;;
*)
    echo "no onnxruntime wheel is pinned for $(uname -sm): put a library of ONNX Runtime $version there yourself" \
        "and point ORT_DYLIB_PATH at it" >&2
    exit 1 ;;
esac

mark="$into/$name.from-wheel"
if [ -f "$into/$name" ] && [ "$(cat "$mark" 2>/dev/null)" = "$wheel" ]; then
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "fetching ONNX Runtime $version (19 MB)…" >&2
# shellcheck disable=SC2086 # the platforms are words
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version 3.12 $platforms --dest "$work" "onnxruntime==$version"
python3 - "$work" "$wheel" "onnxruntime/capi/$inside" "$into" "$name" <<'PY'
import glob, hashlib, os, shutil, sys, zipfile

work, expected, inside, into, name = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(work, "*.whl"))
found = hashlib.sha256(open(wheel, "rb").read()).hexdigest()
if found != expected:
    sys.exit(f"the onnxruntime wheel is not the pinned one: expected {expected}, found {found}")
os.makedirs(into, exist_ok=True)
with zipfile.ZipFile(wheel) as archive:
    wanted = {inside: name, "onnxruntime/LICENSE": "onnxruntime-LICENSE",
              "onnxruntime/ThirdPartyNotices.txt": "onnxruntime-ThirdPartyNotices.txt"}
    for member, target in wanted.items():
        half = os.path.join(into, target + ".half")
        with archive.open(member) as source, open(half, "wb") as sink:
            shutil.copyfileobj(source, sink)
        os.replace(half, os.path.join(into, target))
PY
echo "$wheel" > "$mark"
echo "ONNX Runtime $version is in $into/" >&2
