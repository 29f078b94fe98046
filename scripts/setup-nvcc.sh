#!/bin/sh
# Installs the CUDA compiler from PyPI into .cuda/, where build.rs looks for it (301 MB, a few seconds).
#
#   scripts/setup-nvcc.sh           the compiler
#   scripts/setup-nvcc.sh --sass    and the disassembler of scripts/sass-report.py
#
# The versions are pinned: nvcc, its device compiler and its headers must come from one release. Only ptxas, which makes the machine
# code, is of CUDA 12.8 (bin/ptxas-12.8): drivers from 525 on load what it makes, and those before 580 refuse what ptxas 13 makes.
# Needs Python 3 with pip and nothing of CUDA; a GPU is not needed to compile. Run it again after changing a version: it starts
# from an empty folder.
set -eu

cd "$(dirname "$0")/.."

case "${1-}" in
    "") extra= ;;
    --sass) extra=nvidia-cuda-nvdisasm==13.2.51 ;;
    *)
        echo "usage: scripts/setup-nvcc.sh [--sass]" >&2
        exit 2
        ;;
esac

target=.cuda
python="${PYTHON:-python3}"
stage="$target.new"
rm -rf "$stage"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$stage" \
    nvidia-cuda-nvcc==13.0.88 \
    nvidia-cuda-crt==13.0.88 \
    nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 \
    nvidia-cuda-nvcc-cu12==12.8.93 \
    $extra
# The wheels unpack to nvidia/cu13/{bin,include,lib,nvvm}; build.rs expects bin/nvcc right below the folder. Of CUDA 12.8 there is
# no nvcc on PyPI, and of what there is only ptxas is needed.
mv "$stage/nvidia/cuda_nvcc/bin/ptxas" "$stage/nvidia/cu13/bin/ptxas-12.8"
chmod +x "$stage/nvidia/cu13/bin/ptxas-12.8"
rm -rf "$target"
mv "$stage/nvidia/cu13" "$target"
rm -rf "$stage"
# The next build looks for the compiler again.
touch kernels
"$target/bin/nvcc" --version | tail -n 2
"$target/bin/ptxas-12.8" --version | tail -n 2
