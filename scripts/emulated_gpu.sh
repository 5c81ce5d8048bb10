#!/usr/bin/env bash
# Runs a command as if there were a GPU: CUDA's driver is replaced by one that runs kernels on the processor, thread by
# thread (kernels/cuda/host/driver). Thousands of times slower than a GPU, and good for one thing: to see that the code
# around the kernels calls the right ones rightly.
#
#     export NVCC=$PWD/scripts/nvcc_stand_in.sh
#     scripts/emulated_gpu.sh cargo test --release -p sidenote-kernels --features cuda --test cuda -- --ignored gpu
#
# The libraries are kept in target/emulated_gpu, and made again when their source changes. Needs a C++ compiler.
set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "$script")/.."
sources=$PWD/kernels/cuda
driver=$sources/host/driver
to=${CARGO_TARGET_DIR:-$PWD/target}/emulated_gpu
mkdir -p "$to"
compiler=("${CXX:-c++}" -std=c++17 -O2 -U_FORTIFY_SOURCE -fno-strict-aliasing -fPIC -shared -fvisibility=hidden -fno-gnu-unique
    -DSIDENOTE_HOST -I "$sources" -w)

# compile NAME SOURCES ARGUMENTS...: a library of this name, unless it is newer than all that it is made of.
compile() {
    local library=$to/$1.so
    # shellcheck disable=SC2086 # SOURCES are several
    if [[ ! -e $library || -n $(find $2 "$sources"/*.cuh "$sources/host/emulation.h" -newer "$library") ]]; then
        "${compiler[@]}" -o "$library.new" "${@:3}"
        mv "$library.new" "$library"
    fi
}

# The names of a source's kernels, in KERNEL().
kernels() {
    "${CXX:-c++}" -x c++ -E -P -DSIDENOTE_HOST -I "$sources" "$1" | tr '\n' ' ' | grep -oE 'extern "C" +void +[A-Za-z0-9_]+ *\(' |
        sed -E 's/.* ([A-Za-z0-9_]+) *\(/KERNEL(\1)/' | tr '\n' ' '
}
for source in "$sources"/*.cu; do
    compile "$(basename "$source" .cu)" "$source $driver/kernels.cpp" "-DSOURCE=\"$source\"" "-DKERNELS=$(kernels "$source")" \
        "$driver/kernels.cpp"
done
compile candle "$driver/candle.cpp" "-DKERNELS=$(kernels "$driver/candle.cpp")" "$driver/candle.cpp"

# Every function of a library that cudarc knows is there, most of them only to say that they are not done.
libraries() {
    local cudarc
    find_cudarc() { find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -mindepth 2 -maxdepth 2 -name 'cudarc-0.19.10' 2> /dev/null | head -1; }
    cudarc=$(find_cudarc)
    if [[ -z $cudarc ]] && command -v "${CARGO:-cargo}" > /dev/null; then
        "${CARGO:-cargo}" fetch --quiet
        cudarc=$(find_cudarc)
    fi
    for part in driver cublas cublaslt curand nvrtc; do
        if [[ -n $cudarc ]]; then
            grep -ohE 'fn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/src/$part/sys/mod.rs"
        fi | sed 's/^fn //' | sort -u | sed -E 's/.*/extern "C" __attribute__((weak, visibility("default"))) int &() { return 801; }/' \
            > "$to/$part.cpp"
    done
    compile libcuda "$driver/driver.cpp $script" "$driver/driver.cpp" "$to/driver.cpp" -ldl -Wl,-soname,libcuda.so.1
    compile libcublas "$driver/libraries.cpp" "$driver/libraries.cpp" "$to/cublas.cpp" -Wl,-soname,libcublas.so.13
    compile libcublasLt "$driver/libraries.cpp" "$to/cublaslt.cpp" -Wl,-soname,libcublasLt.so.13
    compile libcurand "$driver/libraries.cpp" "$driver/libraries.cpp" "$to/curand.cpp" -Wl,-soname,libcurand.so.10
    compile libnvrtc "$driver/libraries.cpp" "$to/nvrtc.cpp" -Wl,-soname,libnvrtc.so.13
    compile libcudart "$driver/libraries.cpp" "$to/nvrtc.cpp" -Wl,-soname,libcudart.so.13
    for library in cuda.so.1 cublas.so.13 cublasLt.so.13 curand.so.10 nvrtc.so.13 cudart.so.13; do
        ln -sf "lib${library%.*}" "$to/lib$library"
    done
}
libraries

# Where programs find them, and where the linker does.
export LIBRARY_PATH=$to${LIBRARY_PATH:+:$LIBRARY_PATH}
export LD_LIBRARY_PATH=$to${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
