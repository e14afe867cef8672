#!/usr/bin/env bash
# Debian's PostgreSQL on loopback, with TLS, for the user `dunlin` without a password and `guarded` with one; fsync is on.
# What it keeps is in a directory of its own and outlives a stop; DIR/server.crt is what its certificate is checked by.
#   postgres.sh start PORT DIR [OWNER]   ends and is removed with the process OWNER
#   postgres.sh stop DIR | kill DIR | freeze DIR | thaw DIR | ready PORT | remove DIR
set -euo pipefail
self=$(realpath "$0")

bin() {
  local of
  of=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -1)
  echo "${of:?PostgreSQL is not installed}/$1"
}

# PostgreSQL does not run as root.
as_postgres=()
[ "$(id -u)" != 0 ] || as_postgres=(setpriv --reuid postgres --regid postgres --clear-groups)

# The locale is one that orders text otherwise than by its bytes.
make() {
  local dir=$1 home
  mkdir -p "$dir"
  home=$("${as_postgres[@]}" mktemp -d /tmp/dunlin-postgres.XXXXXX)
  "${as_postgres[@]}" "$(bin initdb)" -D "$home/data" --username=dunlin --auth=trust --encoding=UTF8 \
    --locale=C.UTF-8 --locale-provider=icu --icu-locale=en-US --no-sync >"$dir/initdb.out"
  "${as_postgres[@]}" sed -i '1i host all guarded 127.0.0.1/32 scram-sha-256' "$home/data/pg_hba.conf"
  "${as_postgres[@]}" openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=localhost \
    -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost \
    -keyout "$home/server.key" -out "$home/server.crt" 2>/dev/null
  cp "$home/server.crt" "$dir/"
  echo "$home" >"$dir/home"
}

start() {
  local port=$1 dir=$2 owner=${3-} home
  [ -e "$dir/home" ] || make "$dir"
  home=$(cat "$dir/home")
  cd /
  "${as_postgres[@]}" setsid "$(bin postgres)" -D "$home/data" -p "$port" -k "$home" -c listen_addresses=127.0.0.1 \
    -c ssl=on -c ssl_cert_file="$home/server.crt" -c ssl_key_file="$home/server.key" \
    -c max_connections=200 -c shared_buffers=32MB >>"$dir/postgres.out" 2>&1 </dev/null &
  echo $! >"$dir/started.pid"
  if [ -n "$owner" ] && [ ! -e "$dir/owner" ]; then
    echo "$owner" >"$dir/owner"
    setsid "$self" remove_after "$owner" "$dir" >/dev/null 2>&1 </dev/null &
  fi
}

remove_after() {
  while kill -0 "$1" 2>/dev/null; do sleep 1; done
  remove "$2"
}

# The server and its sessions.
processes() {
  local pid
  pid=$(cat "$1/started.pid" 2>/dev/null) || return 0
  echo "$pid" $(pgrep -P "$pid")
}

signal() { kill -"$1" $2 2>/dev/null || true; }

# Until none of them is left.
gone() {
  local pid
  for pid in $1; do
    for _ in $(seq 400); do kill -0 "$pid" 2>/dev/null || continue 2; sleep 0.05; done
    return 1
  done
}

# Sessions are ended, everything is written.
stop() {
  local all
  all=$(processes "$1")
  signal CONT "$all"
  signal INT "${all%% *}"
  gone "$all" || { signal KILL "$all"; gone "$all"; }
}

# The server first, so that it makes no more of them.
freeze_all() {
  signal STOP "$(cat "$1/started.pid" 2>/dev/null || true)"
  signal STOP "$(processes "$1")"
}

# As a machine that is switched off.
kill_all() {
  local all
  freeze_all "$1"
  all=$(processes "$1")
  signal KILL "$all"
  gone "$all"
}

ready() {
  for _ in $(seq 600); do "$(bin pg_isready)" -q -h 127.0.0.1 -p "$1" && return 0; sleep 0.05; done
  echo "PostgreSQL does not listen on port $1" >&2
  return 1
}

remove() {
  kill_all "$1"
  [ ! -e "$1/home" ] || rm -rf "$(cat "$1/home")"
  rm -rf "$1"
}

case ${1-} in
  start) start "$2" "$(realpath -m "$3")" "${4-}" ;;
  kill) kill_all "$2" ;;
  # Nobody answers, and nobody ends.
  freeze) freeze_all "$2" ;;
  thaw) signal CONT "$(processes "$2")" ;;
  stop | ready | remove) "$1" "$2" ;;
  remove_after) remove_after "$2" "$3" ;;
  *) sed -n '2,5s/^# *//p' "$0" >&2; exit 2 ;;
esac
