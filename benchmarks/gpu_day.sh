#!/usr/bin/env bash
# The first day on a GPU in one script, at most 12 minutes on an H200:
#     bash benchmarks/gpu_day.sh [docs/results/speed-gpu.md]
# tests/gpu; speed and memory of 13m, 111m and 650m, eager and compiled, by micro-batch; flash against
# math; bf16 and FSDP2 against float32 over 1,000 updates; the loader's first touch. A part that fails or takes
# too long says so on the page and the others go on. DRY=1 runs every part on the CPU, tiny: CI does.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/results/speed-gpu.md}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
page=$(mktemp)
failed=0

part() { # part LIMIT_S TITLE COMMAND...
  local limit=$1 title=$2 start=$SECONDS code=0
  shift 2
  printf '\n## %s\n\n`%s`\n\n' "$title" "$*" >>"$page"
  timeout "$limit" "$@" >"$page.part" 2>"$page.err" || code=$?
  cat "$page.part" >>"$page"
  if [ $code != 0 ]; then
    failed=1
    printf '\n**Failed: exit code %s**\n\n```\n%s\n```\n' $code "$(tail -n 15 "$page.err")" >>"$page"
  fi
  printf '\n%s s\n' $((SECONDS - start)) >>"$page"
  echo "$title: exit code $code, $((SECONDS - start)) s"
}

if [ -n "${DRY:-}" ]; then
  part 300 "Speed" python benchmarks/model.py --size tiny --tables presets --batch 1 --rounds 1 --threads 1
  part 300 "bf16 against float32" python benchmarks/precision.py --preset tiny --updates 10 --batch 1
  part 300 "First touch" python benchmarks/loader.py --shards 4
else
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$page.gpu" || exit 1
  part 150 "Tests on the device" python -m pytest -q -m gpu tests/gpu
  for batch in 16 64 256; do
    part 100 "Speed, micro-batches of $batch" \
      python benchmarks/model.py --device cuda --tables presets --size 13m 111m 650m --batch $batch --rounds 3
  done
  part 60 "Flash against math" python benchmarks/model.py --device cuda --tables attention
  part 60 "Against transformers" python benchmarks/model.py --device cuda --tables pairs --size 111m --rounds 5
  part 120 "bf16 against float32" \
    python benchmarks/precision.py --device cuda --preset 111m --updates 1000 --batch 32
  part 60 "First touch" python benchmarks/loader.py --shards 320
fi

{
  printf '# Speed on a GPU\n\nWritten by `bash benchmarks/gpu_day.sh` on %s.\n' "$(date -u +%F)"
  if [ -e "$page.gpu" ]; then cat "$page.gpu"; fi
  cat "$page"
} >"$out"
rm -f "$page" "$page".*
echo "$out: $SECONDS s"
exit $failed
