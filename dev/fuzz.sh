#!/usr/bin/env bash
# Runs fuzz targets, all of them or those that are named, one after the other, and says in a line what came of each.
#   FUZZ_SECONDS=600 dev/fuzz.sh [TARGET...]
#   dev/fuzz.sh keep TARGET...    takes into fuzz/corpus/ what reaches code that nothing there reaches
# What is found stays outside the checkout; an input that breaks a target is named and goes to fuzz/artifacts/TARGET/.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dunlin
export PATH=$("$PWD/dev/setup.sh" fuzz):$PATH
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$cache/fuzz/target}
seconds=${FUZZ_SECONDS:-600}
found=$cache/fuzz/corpus

keep=
if [ "${1-}" = keep ]; then keep=yes && shift; fi
[ $# -gt 0 ] || set -- $(cd fuzz/fuzz_targets && ls *.rs | sed 's/\.rs$//')
cargo fuzz build --sanitizer none

failed=
for target in "$@"; do
  mkdir -p "$found/$target" "fuzz/corpus/$target"
  if [ -n "$keep" ]; then
    cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "$found/$target" -- \
      -set_cover_merge=1 -use_counters=0 2>/dev/null
    continue
  fi
  log=$found/$target.log
  # Ten seconds for an input of 4 KiB: something grows that should not.
  if cargo fuzz run --sanitizer none "$target" "$found/$target" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 >"$log" 2>&1; then
    result=clean
  else
    result="BROKEN, see $log" failed=yes
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)
  echo "$target: ${runs:-?} executions in $seconds s, ${covered:-no coverage}, $result"
done
[ -z "$failed" ]
