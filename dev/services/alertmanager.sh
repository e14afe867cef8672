#!/usr/bin/env bash
# Debian's prometheus-alertmanager on loopback: alone, nothing kept beyond its directory.
#   alertmanager.sh start PORT DIR | stop DIR | ready PORT
set -euo pipefail
start() {
  local port=$1 dir=$2
  mkdir -p "$dir/data"
  cat >"$dir/alertmanager.yml" <<CONF
route:
  receiver: nobody
receivers:
  - name: nobody
CONF
  setsid prometheus-alertmanager --config.file="$dir/alertmanager.yml" --storage.path="$dir/data" \
    --web.listen-address="127.0.0.1:$port" --cluster.listen-address= \
    >"$dir/alertmanager.out" 2>&1 </dev/null &
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
  for _ in $(seq 1200); do curl -fs "http://127.0.0.1:$1/-/ready" >/dev/null && return 0; sleep 0.05; done
  echo "prometheus-alertmanager is not ready on port $1" >&2
  return 1
}
case ${1-} in
  start) start "$2" "$(realpath -m "$3")" ;;
  stop) stop "$2" ;;
  ready) ready "$2" ;;
  *) sed -n '2,3s/^# *//p' "$0" >&2; exit 2 ;;
esac
