#!/usr/bin/env bash
# Debian's mosquitto on loopback: anonymous, nothing persistent.
#   mosquitto.sh start PORT DIR | stop DIR | ready PORT
set -euo pipefail
start() {
  local port=$1 dir=$2
  mkdir -p "$dir"
  cat >"$dir/mosquitto.conf" <<CONF
listener $port 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
log_dest stderr
log_type error
log_type warning
user $(id -un)
CONF
  PATH=$PATH:/usr/sbin setsid mosquitto -c "$dir/mosquitto.conf" >"$dir/mosquitto.out" 2>&1 </dev/null &
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
  for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0; sleep 0.05; done
  echo "mosquitto does not listen on port $1" >&2
  return 1
}
case ${1-} in
  start) start "$2" "$(realpath -m "$3")" ;;
  stop) stop "$2" ;;
  ready) ready "$2" ;;
  *) sed -n '2,3s/^# *//p' "$0" >&2; exit 2 ;;
esac
