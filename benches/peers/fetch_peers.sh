#!/bin/sh
# Packs the peers of gpu.py for a GPU machine without network: fetch_peers.sh [OUT.tar.xz] (default:
# runs/peers/peers.tar.xz, 12 MB).
#
# For Python 3.12 with torch 2.11 (CUDA 13) and transformers 5.17 there; what such a machine has already is left out, and so is
# xformers, which is built for another torch (Unsloth takes PyTorch's attention then). A wheel that cannot be had is an error.
# There: mkdir site && tar xJf peers.tar.xz -C site && PYTHONPATH=site python3 gpu.py ...
set -eu

cd "$(dirname "$0")"
out="${1-../../runs/peers/peers.tar.xz}"
python="${PYTHON:-python3}"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT

platforms="--platform manylinux2014_x86_64 --platform manylinux1_x86_64"
for glibc in 17 24 27 28 31 34 35; do
    platforms="$platforms --platform manylinux_2_${glibc}_x86_64"
done
missing=
# Without dependencies: they would bring torch and its CUDA libraries along.
for wheel in \
    unsloth==2026.10.9 unsloth_zoo==2026.10.9 trl==1.15.0 liger-kernel==0.8.5 bitsandbytes==0.50.2 \
    cut-cross-entropy==25.1.1 torchao==0.18.0 datasets==4.8.5 dill==0.4.1 multiprocess==0.70.19 tyro==1.0.16 \
    typeguard==4.6.0 docstring_parser==0.18.0 msgspec==0.22.0 pydantic==2.14.3 pydantic_core==2.50.4 \
    annotated_types==0.8.0 typing_inspection==0.4.5 structlog==26.1.0 json5==0.17.3 nest_asyncio==1.6.0
do
    # shellcheck disable=SC2086  # words
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp $platforms --dest "$stage/wheels" "$wheel" || missing="$missing $wheel"
done
if [ -n "$missing" ]; then
    echo "fetch_peers.sh: not found:$missing" >&2
    exit 1
fi
mkdir "$stage/site"
for wheel in "$stage"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$stage/site"
done
# Web interfaces, tests, and kernels for other CUDA versions than 13.0.
rm -rf "$stage/site/studio" "$stage/site/unsloth_cli" "$stage/site/unsloth/studio" "$stage/site/test"
find "$stage/site/bitsandbytes" -name 'libbitsandbytes_*.so' ! -name '*cuda130*' ! -name '*cpu*' -delete
mkdir -p "$(dirname "$out")"
tar cf - -C "$stage/site" . | xz -T0 -6 >"$out"
ls -l "$out"
