#!/usr/bin/env bash
# Make .venv and install a requirements file into it, ending with pillow-simd in place where it can be built.
set -euo pipefail
cd "$(dirname "$0")"
requirements=${1:-requirements.txt}

# Print a Python that relic's packages have wheels for. Without one, get 3.12 by uv into .uv/.
find_python() {
    local candidate uv=uv
    for candidate in "${PYTHON:-python3}" python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11 or 3.12 here; getting Python 3.12 by uv" >&2
    if ! command -v uv >/dev/null; then
        uv=.uv/bin/uv
        if ! { python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; } >/dev/null 2>&1; then
            no_python
            return 1
        fi
    fi
    if ! "$uv" python install --quiet 3.12 >/dev/null 2>&1 || ! "$uv" python find 3.12 2>/dev/null; then
        no_python
        return 1
    fi
}

no_python() {
    echo "setup: uv could not get Python 3.12 (no network?); install Python 3.11 or 3.12 with its venv module," \
        "then: PYTHON=/path/to/python3.12 make setup" >&2
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

if [ "${BASH_SOURCE[0]}" != "$0" ]; then
    return 0 # sourced by a test
fi

python=$(find_python)
if ! [ -x .venv/bin/pip ]; then
    "$python" -m venv .venv || {
        echo "setup: no virtual environment could be made; on Debian: apt-get install python3-venv" >&2
        exit 1
    }
fi
echo "setup: installing $requirements (torch brings several GB; a few minutes)"
.venv/bin/pip install --quiet --disable-pip-version-check -r "$requirements"
settle_pillow
