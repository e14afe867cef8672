#!/usr/bin/env bash
# Debian's mosquitto on loopback: anonymous, nothing persistent.
#   mosquitto.sh start PORT DIR | stop DIR | ready PORT
# With PERSISTENT=1 it writes its sessions to DIR when it is stopped and goes on with them. With SECURE=1 its door has TLS
# and asks who comes: DIR/ca.pem, user dunlin, password secret.
set -euo pipefail
PATH=$PATH:/usr/sbin

# A certificate for 127.0.0.1, of an authority of its own.
certify() {
  local new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
  openssl req -x509 "${new_key[@]}" -days 2 -subj "/CN=test authority" -keyout "$1/ca.key" -out "$1/ca.pem"
  openssl req "${new_key[@]}" -subj /CN=mosquitto -keyout "$1/key.pem" -out "$1/request.pem"
  printf 'subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n' >"$1/names"
  openssl x509 -req -in "$1/request.pem" -CA "$1/ca.pem" -CAkey "$1/ca.key" -days 2 -extfile "$1/names" -out "$1/cert.pem"
}
start() {
  local port=$1 dir=$2
  mkdir -p "$dir"
  cat >"$dir/mosquitto.conf" <<CONF
listener $port 127.0.0.1
allow_anonymous $([ -n "${SECURE-}" ] && echo false || echo true)
max_inflight_messages 0
max_queued_messages 0
log_dest stderr
log_type error
log_type warning
user $(id -un)
CONF
  if [ -n "${PERSISTENT-}" ]; then
    printf 'persistence true\npersistence_location %s/\n' "$dir" >>"$dir/mosquitto.conf"
  else
    echo 'persistence false' >>"$dir/mosquitto.conf"
  fi
  if [ -n "${SECURE-}" ]; then
    certify "$dir" 2>/dev/null
    touch "$dir/passwords"
    chmod 600 "$dir/passwords"
    mosquitto_passwd -b "$dir/passwords" dunlin secret
    printf '%s\n' "certfile $dir/cert.pem" "keyfile $dir/key.pem" "password_file $dir/passwords" >>"$dir/mosquitto.conf"
  fi
  setsid mosquitto -c "$dir/mosquitto.conf" >>"$dir/mosquitto.out" 2>&1 </dev/null &
  echo $! >"$dir/started.pid"
}
stop() {
  local pid
  pid=$(cat "$1/started.pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 600); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.05; done
  kill -9 "$pid"
}
ready() {
  for _ in $(seq 1200); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0; sleep 0.05; done
  echo "mosquitto does not listen on port $1" >&2
  return 1
}
case ${1-} in
  start) start "$2" "$(realpath -m "$3")" ;;
  stop) stop "$2" ;;
  ready) ready "$2" ;;
  *) sed -n '2,5s/^# *//p' "$0" >&2; exit 2 ;;
esac
