#!/usr/bin/env bash
# Everything that needs a GPU, in order of worth, within a number of minutes, into one folder of at most eight files.
#
#   OUT=results bash bench/gpu_run.sh               25 minutes on a machine with a GPU
#   OUT=results bash bench/gpu_run.sh --rehearse    the same stages on a CPU, tiny and untimed
#
# MINUTES=25 bounds the whole run; ONLY='info|smoke' picks stages by a pattern, where one call may not take as long
# as all of them, for instance in three calls of ten minutes:
#
#   MINUTES=9 ONLY='^(device|info|first_light|tune_two|bench_home|training|profile)$'
#   MINUTES=9 ONLY='^(info|smoke|bench_smoke|forward|backward|rest|memcheck|racecheck|initcheck)$'
#   MINUTES=9 ONLY='^(info|bench_floors|tune|bench_memory|bench_latency|bench_flashrnn)$'
#   MINUTES=9 ONLY='^(info|import|bench_grid|bench_features|full_size)$' TUNED=folder-with-what-the-third-call-tuned
#
# WARM names a Triton cache that `python -m holdfast.bench.first_light --compile` has filled elsewhere (bench/README.md).
#
# Every stage has a process and a time-out of its own, so that a kernel that spins costs its stage and no more. After
# every stage $OUT holds what there is so far:
#
#   stages.csv         name, seconds and exit status of every stage; what it printed is in logs.tar.gz
#   results.csv, results.md, provenance.json, pictures.tar.gz    of the suites (holdfast bench)
#   full_size.csv      layers of useful size beside torch.nn
#   tuned.tar.gz       what tuning found, for `holdfast tune --import` and autotune/shipped/, and the cost model's
#                      constants as the floors have them
#
# Nothing is installed: a link puts the package on Python's path. Beside torch and Triton it needs pandas, pytest, rich,
# typer and matplotlib; pytest-timeout, pytest-xdist, compute-sanitizer and ncu are used where they are there.
set -u
cd "$(dirname "$0")/.."
: "${WARM:=}" "${OUT:=gpu_out}" "${MINUTES:=25}" "${PYTHON:=python3}" "${ONLY:=.}" "${TUNED:=}" "${TUNE_SECONDS:=240}"
rehearse=${1:-}
where=$([ "$rehearse" = --rehearse ] && echo "not gpu" || echo gpu)
# Where torch finds no GPU, every test that is marked gpu is skipped, which looks green.
if [ "$where" = gpu ] && ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_run: torch finds no GPU. nvidia-smi, and $PYTHON -c 'import torch; torch.cuda.init()', say more;" \
        "gpu_run.sh --rehearse runs the same stages on a CPU." >&2
    exit 2
fi
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$WORK/logs" "$WORK/bench" "$WORK/path"
# pip would need setuptools 77 and a place to write, of which a lent machine may lack both.
ln -s "$PWD" "$WORK/path/holdfast"
export PYTHONPATH=$WORK/path${PYTHONPATH:+:$PYTHONPATH}
end=$((SECONDS + MINUTES * 60))
export PYTHONUNBUFFERED=1
# Kept between calls on the same machine, and platformdirs, which a lent machine may lack, is not asked for a folder.
export HOLDFAST_CACHE=${HOLDFAST_CACHE:-${TMPDIR:-/tmp}/holdfast-cache}
if [ -n "$WARM" ]; then # carried files may be read-only, and Triton writes beside what it finds
    export TRITON_CACHE_DIR=${TMPDIR:-/tmp}/holdfast-triton
    mkdir -p "$TRITON_CACHE_DIR" && cp -rn "$WARM"/. "$TRITON_CACHE_DIR"/
fi
echo "stage,seconds,status" >"$OUT/stages.csv"

pack() { # what there is so far, so that a run that is cut off leaves it
    local name
    tar -czf "$OUT/logs.tar.gz" -C "$WORK" logs
    for name in results.csv results.md provenance.json; do
        [ -f "$WORK/bench/$name" ] && cp "$WORK/bench/$name" "$OUT/"
    done
    [ -f "$WORK/full_size.csv" ] && cp "$WORK/full_size.csv" "$OUT/"
    if [ -f "$WORK/bench/results.tex" ]; then
        (cd "$WORK/bench" && tar -czf "$OUT/pictures.tar.gz" ./*.png ./*.pdf results.tex 2>/dev/null)
    fi
    [ -f "$WORK/bench/constants.json" ] && mkdir -p "$WORK/tuned" && cp "$WORK/bench/constants.json" "$WORK/tuned/"
    [ -d "$WORK/tuned" ] && tar -czf "$OUT/tuned.tar.gz" -C "$WORK" tuned
    return 0
}

stage() { # NAME LIMIT_S COMMAND...
    local name=$1 limit=$2 left=$((end - SECONDS)) start=$SECONDS status
    shift 2
    [[ $name =~ $ONLY ]] || return 0
    if [ $left -lt 20 ]; then
        echo "$name,0,no time left" | tee -a "$OUT/stages.csv"
        return
    fi
    [ "$limit" -gt $left ] && limit=$left
    timeout -k 10 "$limit" "$@" >"$WORK/logs/$name.log" 2>&1
    status=$?
    echo "$name,$((SECONDS - start)),$status" | tee -a "$OUT/stages.csv"
    tail -n 3 "$WORK/logs/$name.log"
    pack
}

tests() { # NAME LIMIT_S EXPRESSION PYTEST_ARGUMENTS...
    local name=$1 limit=$2 expression=$3
    shift 3
    stage "$name" "$limit" "$PYTHON" -m pytest -q -p no:cacheprovider "${per_test[@]}" \
        -m "$where and not slow" -k "$expression" "$@"
}

suite() { # NAME MINUTES OPTIONS...: ends by itself after MINUTES, with what it has by then
    local name=$1 minutes=$2 left=$(((end - SECONDS) / 60))
    shift 2
    [ "$minutes" -gt "$left" ] && [ "$left" -gt 0 ] && minutes=$left
    stage "bench_$name" $((minutes * 60 + 60)) "$PYTHON" -m holdfast bench "$name" --out "$WORK/bench" \
        --minutes "$minutes" "$@"
}

tool() { # a stage of its own where the tool is there: NAME LIMIT_S TOOL ARGUMENTS...
    local name=$1 limit=$2 tool=$3
    [[ $name =~ $ONLY ]] || return 0
    if ! command -v "$tool" >/dev/null; then
        echo "$name,0,no $tool here" | tee -a "$OUT/stages.csv"
        return
    fi
    shift 2
    stage "$name" "$limit" "$@"
}

workers=() per_test=(-o faulthandler_timeout=120) # without the plugin the log at least says which test hangs
"$PYTHON" -c "import pytest_timeout" 2>/dev/null && per_test=(--timeout 120)
[ "$where" = gpu ] && "$PYTHON" -c "import xdist" 2>/dev/null && workers=(-n 8)

if [ "$where" = gpu ]; then
    stage device 30 nvidia-smi -q
fi
stage info 60 "$PYTHON" -m holdfast info
if [ "$where" = gpu ]; then
    stage first_light 320 "$PYTHON" -m holdfast.bench.first_light --out "$WORK/logs/first_light"
    stage tune_two 230 "$PYTHON" -m holdfast tune --list-file bench/first_two.csv --budget 200 --out "$WORK/tuned"
else
    stage first_light 240 "$PYTHON" -m holdfast.bench.first_light --rehearse --out "$WORK/logs/first_light" \
        --only versions,kernels,polls
fi
tests smoke 240 "test_as_torch_in_float64 and lstm and float32" tests/test_kernels_forward.py -x
if [ "$where" = gpu ]; then
    [ -n "$TUNED" ] && stage import 60 "$PYTHON" -m holdfast tune --import "$TUNED"
    suite smoke 2
    tests forward 420 "" tests/test_kernels_forward.py "${workers[@]}"
    tests backward 420 "" tests/test_kernels_backward.py "${workers[@]}"
    tests training 300 "" tests/test_training_gpu.py tests/test_gpu_graph.py tests/test_gpu_memory.py
    tests rest 300 "" tests "${workers[@]}" --ignore tests/test_kernels_forward.py \
        --ignore tests/test_kernels_backward.py --ignore tests/test_training_gpu.py \
        --ignore tests/test_gpu_graph.py --ignore tests/test_gpu_memory.py
    for name in memcheck racecheck initcheck; do
        tool "$name" 180 compute-sanitizer --tool "$name" --error-exitcode 1 \
            "$PYTHON" -m holdfast bench smoke --quick --providers holdfast --seconds 0.001 --out "$WORK/$name"
    done
    suite floors 2
    stage tune $((TUNE_SECONDS + 60)) "$PYTHON" -m holdfast tune --list-file bench/tune_list.csv \
        --budget "$TUNE_SECONDS" --out "$WORK/tuned"
    suite home 4 --seconds 0.3
    suite memory 1
    suite latency 2 --seconds 0.2
    suite flashrnn 4 --seconds 0.3
    suite features 3 --seconds 0.3
    suite host 2 --threads 1
    stage full_size 600 "$PYTHON" -m holdfast.bench.full_size --out "$WORK"
    suite grid 8 --seconds 0.15
    # The clocks stay as they are: the card is shared with others after us.
    tool profile 240 ncu --clock-control none --section SpeedOfLight --section WarpStateStats \
        --section MemoryWorkloadAnalysis --kernel-name regex:forward --launch-count 1 \
        "$PYTHON" -m holdfast bench home --quick --providers holdfast --seconds 0.001 --out "$WORK/profile"
else
    tests forward 120 "test_tf32 and lstm" tests/test_kernels_forward.py -x
    tests backward 240 "test_as_torch_in_float64 and lstm and float32" tests/test_kernels_backward.py -x
    # Tests that only a GPU can run: here they are at least found.
    where=gpu tests training 120 "" tests --collect-only
    tests rest 240 "test_random_combinations and gru_reset_before" tests/test_kernels_features.py -x
    suite host 1 --quick --threads 1 --seconds 0.02
    stage tune 120 "$PYTHON" -m holdfast tune --cell lstm --hidden 128 --candidates 2 --rehearse --out "$WORK/tuned"
    for name in smoke floors home memory latency flashrnn features grid; do
        suite "$name" 2 --rehearse
    done
    for name in memcheck racecheck initcheck; do
        tool "$name" 60 compute-sanitizer --version
    done
    tool profile 60 ncu --version
    stage full_size 240 "$PYTHON" -m holdfast.bench.full_size --out "$WORK" --rehearse
fi
pack
# The exit status of the first stage that failed: time-outs (124, 137) and red tests alike; a missing tool is none.
awk -F, 'NR > 1 && $3 != 0 && $3 !~ /^no .* here$/ { exit ($3 ~ /^[0-9]+$/) ? $3 : 1 }' "$OUT/stages.csv"
