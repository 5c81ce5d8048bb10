#!/usr/bin/env bash
# Stands in for nvcc, so that code with candle's own `cuda` feature can be type-checked, and linked where candle's largest
# kernels are not called, without the ten minutes that they take to compile:
#
#     NVCC=$PWD/scripts/nvcc_stand_in.sh CUDA_COMPUTE_CAP=80 cargo clippy -p sidenote-kernels --features candle-cuda
#
# What it compiles is empty. Where REAL_NVCC names a compiler, that one compiles our kernels and those of candle's that
# models here use; left empty are convolutions, quantised products and mixtures of experts.
set -euo pipefail

to='' folder='' kind='' source=''
arguments=("$@")
while (($#)); do
    case $1 in
    --version) echo 'Cuda compilation tools, release 13.0, V13.0.88' && exit ;;
    --list-gpu-code) printf 'sm_80\nsm_90\n' && exit ;;
    -o) to=$2 && shift ;;
    --output-directory) folder=$2 && shift ;;
    -fatbin | --ptx | -c | --lib) kind=$1 ;;
    *.cu) source=$1 ;;
    esac
    shift
done

empty=0
case $kind:$source in
--lib:* | -c:* | --ptx:*/conv.cu | --ptx:*/quantized.cu) empty=1 ;;
esac
if [[ -n ${REAL_NVCC:-} ]] && ((!empty)); then
    exec "$REAL_NVCC" "${arguments[@]}"
fi
name=$(basename "$source" .cu)
case $kind in
-fatbin) echo "$name" > "$to" ;; # by which kernels/cuda/host/driver knows it
--ptx) printf '.version 9.0\n.target sm_80\n.address_size 64\n' > "$folder/$name.ptx" ;;
-c) "${CC:-cc}" -x c -c -o "$to" /dev/null ;;
--lib)
    # Of what candle calls in it, functions that end the program.
    names=$(sed -n 's/^ *pub fn \([a-z0-9_]*\)(.*/\1/p' src/ffi.rs)
    for name in $names; do
        echo "void $name(void) { __builtin_trap(); }"
    done | "${CC:-cc}" -x c -c -fPIC -o "$to.o" -
    rm -f "$to"
    "${AR:-ar}" rcs "$to" "$to.o"
    ;;
*) echo "$0: neither -fatbin, --ptx, -c nor --lib" >&2 && exit 2 ;;
esac
