#!/usr/bin/env bash
# Make .venv and install a requirements file into it, ending with pillow-simd in place where it can be built.
set -euo pipefail
cd "$(dirname "$0")"
requirements=${1:-requirements.txt}

supported() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
}

find_python() {
    for candidate in "${PYTHON:-python3}" python3.12 python3.11; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# CompressAI has no wheels for newer Pythons. uv brings 3.12 beside the system's own.
make_venv_by_uv() {
    echo "setup: no Python 3.11 or 3.12 here; uv brings 3.12"
    uv=$(command -v uv) || {
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        uv=$scratch/bin/uv
        python3 -m venv "$scratch" && "$scratch/bin/pip" install --quiet --disable-pip-version-check uv
    } 2>/dev/null && "$uv" venv --quiet --seed --python 3.12 .venv || {
        rm -rf .venv
        echo "setup: relic needs Python 3.11 or 3.12, and uv could not bring one; install python3.12 with its" \
            "venv module, or name one as in: PYTHON=/usr/bin/python3.12 make setup" >&2
        return 1
    }
}

# pillow-simd overwrites Pillow inside PIL/. Its version is Pillow's own, so either one alone is a whole package.
settle_pillow() {
    if .venv/bin/python -c 'import PIL; raise SystemExit(".post" not in PIL.__version__)' 2>/dev/null; then
        return
    fi
    compiler=cc
    if grep -q avx2 /proc/cpuinfo 2>/dev/null; then compiler="cc -mavx2"; fi
    if ! printf '#include <stdio.h>\n#include <zlib.h>\n#include <jpeglib.h>\n' | cc -E - >/dev/null 2>&1; then
        echo "setup: stock Pillow stays (resizing is several times slower than with pillow-simd); to build it:" \
            "apt-get install gcc python3-dev zlib1g-dev libjpeg-dev libwebp-dev liblcms2-dev libtiff-dev, then make setup again"
        return
    fi
    if CC=$compiler .venv/bin/pip install --quiet --no-deps --force-reinstall pillow-simd==12.1.1.post0; then
        .venv/bin/python -c '
from PIL import __version__, features
formats = {"webp": "WebP", "littlecms2": "ICC profiles by LittleCMS", "libtiff": "compressed TIFF"}
missing = ", ".join(name for feature, name in formats.items() if not features.check(feature))
print(f"setup: pillow-simd {__version__} in place")
if missing:
    print(f"setup: without {missing}; to have them: apt-get install libwebp-dev liblcms2-dev libtiff-dev, rm -r .venv")'
    else
        .venv/bin/pip install --quiet --no-deps --force-reinstall "$(grep -o '^pillow==[^ ]*' requirements.txt)"
        echo "setup: pillow-simd could not be built, stock Pillow stays"
    fi
}

if [ -x .venv/bin/pip ]; then
    supported .venv/bin/python || {
        echo "setup: .venv is not of Python 3.11 or 3.12; rm -r .venv, then make setup again" >&2
        exit 1
    }
elif python=$(find_python); then
    "$python" -m venv .venv || {
        echo "setup: no virtual environment could be made; on Debian: apt-get install python3-venv" >&2
        exit 1
    }
else
    make_venv_by_uv
fi
echo "setup: installing $requirements (torch brings several GB; a few minutes)"
.venv/bin/pip install --quiet --disable-pip-version-check -r "$requirements"
settle_pillow
