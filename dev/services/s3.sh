#!/usr/bin/env bash
# s3s-fs, an S3 server that checks signatures, on loopback: objects are files below DIR/objects, buckets its directories.
# The access key is "dunlin", the secret "not-a-secret".
#   s3.sh start PORT DIR BUCKET... | stop DIR | ready PORT
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
start() {
  local port=$1 dir=$2 bucket server
  shift 2
  server=$("$here/setup.sh" s3)/s3s-fs
  for bucket; do mkdir -p "$dir/objects/$bucket"; done
  setsid "$server" --host 127.0.0.1 --port "$port" --access-key dunlin --secret-key not-a-secret "$dir/objects" \
    >"$dir/s3.out" 2>&1 </dev/null &
  echo $! >"$dir/started.pid"
}
stop() {
  local pid
  pid=$(cat "$1/started.pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.05; done
  kill -9 "$pid"
}
ready() {
  for _ in $(seq 1200); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0; sleep 0.05; done
  echo "s3s-fs does not listen on port $1" >&2
  return 1
}
case ${1-} in
  start) start "$2" "$(realpath -m "$3")" "${@:4}" ;;
  stop) stop "$2" ;;
  ready) ready "$2" ;;
  *) sed -n '2,4s/^# *//p' "$0" >&2; exit 2 ;;
esac
