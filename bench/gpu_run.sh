#!/usr/bin/env bash
# Everything that needs a GPU, in order of worth, within a number of minutes, into one folder.
#
#   OUT=results bash bench/gpu_run.sh               25 minutes on a machine with a GPU
#   OUT=results bash bench/gpu_run.sh --rehearse    the same stages on a CPU, tiny and untimed
#
# MINUTES=25 bounds the whole run; ONLY='install|smoke' picks stages by a pattern, where one call may not take as long
# as all of them. Every stage has a process and a time-out of its own, so that a kernel that spins
# costs its stage and no more. What a stage prints is in $OUT/STAGE.log; how it ended, in $OUT/stages.csv.
# Nothing is installed from outside: the package itself goes in without its dependencies.
set -u
cd "$(dirname "$0")/.."
: "${OUT:=gpu_out}" "${MINUTES:=25}" "${PYTHON:=python3}" "${ONLY:=.}"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rehearse=${1:-}
end=$((SECONDS + MINUTES * 60))
where=$([ "$rehearse" = --rehearse ] && echo "not gpu" || echo gpu)
export PYTHONUNBUFFERED=1
echo "stage,seconds,status" >"$OUT/stages.csv"

stage() { # NAME LIMIT_S COMMAND...
    local name=$1 limit=$2 left=$((end - SECONDS)) start=$SECONDS status
    shift 2
    [[ $name =~ $ONLY ]] || return 0
    if [ $left -lt 20 ]; then
        echo "$name,0,no time left" | tee -a "$OUT/stages.csv"
        return
    fi
    [ "$limit" -gt $left ] && limit=$left
    timeout -k 10 "$limit" "$@" >"$OUT/$name.log" 2>&1
    status=$?
    echo "$name,$((SECONDS - start)),$status" | tee -a "$OUT/stages.csv"
    tail -n 3 "$OUT/$name.log"
}

tests() { # NAME LIMIT_S EXPRESSION PYTEST_ARGUMENTS...
    local name=$1 limit=$2 expression=$3
    shift 3
    stage "$name" "$limit" "$PYTHON" -m pytest -q -p no:cacheprovider --timeout 120 \
        -m "$where and not slow" -k "$expression" "$@"
}

workers=()
[ "$where" = gpu ] && "$PYTHON" -c "import xdist" 2>/dev/null && workers=(-n 8)

if [ "$where" = gpu ]; then
    stage install 120 "$PYTHON" -m pip install --no-deps --no-build-isolation -q -e .
    stage device 30 nvidia-smi -q
fi
stage info 60 "$PYTHON" -m holdfast info
tests smoke 240 "test_as_torch_in_float64 and lstm and float32" tests/test_kernels_forward.py -x
if [ "$where" = gpu ]; then
    tests forward 420 "" tests/test_kernels_forward.py "${workers[@]}"
    tests backward 420 "" tests/test_kernels_backward.py "${workers[@]}"
    tests training 300 "" tests/test_training_gpu.py tests/test_gpu_graph.py tests/test_gpu_memory.py
    stage full_size 600 "$PYTHON" -m holdfast.bench.full_size --out "$OUT"
else
    tests backward 240 "test_as_torch_in_float64 and lstm and float32" tests/test_kernels_backward.py -x
    stage full_size 240 "$PYTHON" -m holdfast.bench.full_size --out "$OUT" --rehearse
fi
# The exit status of the first stage that failed: time-outs (124, 137) and red tests alike.
awk -F, 'NR > 1 && $3 != 0 { exit ($3 ~ /^[0-9]+$/) ? $3 : 1 }' "$OUT/stages.csv"
