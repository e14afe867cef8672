#!/usr/bin/env bash
# Installs what is missing on Debian and nothing else. Says nothing and is quick when all is there.
#   setup.sh build   what building needs
#   setup.sh test    that, and what the tests need; prints nothing but where the test tools are
#   setup.sh fuzz    what building needs, and cargo-fuzz; prints nothing but the directory it is in
#   setup.sh kafka   what a Kafka broker needs; prints where its jars are
#   setup.sh s3      an S3 server; prints the directory it is in
#   setup.sh flink   what the Flink jobs of tests and benchmarks need; prints where their jars and classes are
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dunlin

need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing+=("$2"); }

have_postgres() { compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

fail() {
  echo "setup: $1" >&2
  exit 1
}

# Tests start mosquitto and PostgreSQL themselves, on their own ports: no service must start with its package. However this
# script ends, services start again with packages that others install.
policy=/usr/sbin/policy-rc.d laid=
lay_policy() {
  [ -e $policy ] && return
  trap take_policy EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  laid=yes
  printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
  as_root chmod 755 $policy
}

take_policy() {
  [ -z "$laid" ] || as_root rm -f $policy
  laid=
}

install_missing() {
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || fail "this is not Debian; install by hand: ${missing[*]}"
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
    fail "neither root nor sudo; run as root: apt-get install ${missing[*]}"
  echo "setup: installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  as_root apt-get update -qq >&2
  lay_policy
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  take_policy
}

# Debian's own is too old, and which toolchain a machine has is its owner's choice.
rust() {
  command -v cargo >/dev/null || fail "cargo is missing. Install Rust 1.95 or newer and run this again:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
}

rust_lints() {
  local tool
  for tool in fmt clippy; do
    cargo $tool --version >/dev/null 2>&1 ||
      fail "cargo $tool is missing. Run this, then again: rustup component add rustfmt clippy"
  done
}

cargo_fuzz() {
  local dir=$cache/cargo-fuzz-0.13.2
  [ -x "$dir/bin/cargo-fuzz" ] ||
    cargo install cargo-fuzz --version "${dir##*-}" --locked --quiet --root "$dir" >&2
  echo "$dir/bin"
}

# An S3 server, as a crate. Built without optimising: it is there to be right.
s3_server() {
  local dir=$cache/s3s-fs-0.14.1
  [ -x "$dir/bin/s3s-fs" ] ||
    cargo install s3s-fs --version "${dir##*-}" --features binary --locked --debug --quiet --root "$dir" >&2
  echo "$dir/bin"
}

# A directory is complete once it is renamed to its final name.
venv() {
  local dir=$cache/venv-$(cat "$here/requirements.txt" <(python3 --version) | sha256sum | cut -c1-16)
  if [ ! -d "$dir" ]; then
    rm -rf "$dir.new"
    python3 -m venv "$dir.new" >&2
    "$dir.new/bin/python" -m pip install -q --disable-pip-version-check -r "$here/requirements.txt" >&2
    mv "$dir.new" "$dir"
  fi
  echo "$dir"
}

node_modules() {
  local dir=$cache/node-$(sha256sum "$here/package.json" | cut -c1-16)
  if [ ! -d "$dir" ]; then
    rm -rf "$dir.new"
    mkdir -p "$dir.new"
    cp "$here/package.json" "$dir.new/"
    npm install --prefix "$dir.new" --silent --no-audit --no-fund >&2
    mv "$dir.new" "$dir"
  fi
  echo "$dir"
}

# Apache Kafka's own jars and what they need, from Maven Central.
kafka_jars() {
  local dir=$cache/kafka-$(sha256sum "$here/services/kafka/pom.xml" | cut -c1-16)
  if [ ! -d "$dir" ]; then
    mkdir -p "$cache"
    # Tests that start at the same time fetch each into a place of their own.
    local new
    new=$(mktemp -d "$dir.XXXX")
    mvn -B -q -f "$here/services/kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$new" >&2
    mv -T "$new" "$dir" 2>/dev/null || rm -rf "$new"
  fi
  echo "$dir"
}

# Apache Flink in one process, from Maven Central, and the jobs compiled against it.
flink_jobs() {
  local dir=$cache/flink-$(cat "$here"/services/flink/* | sha256sum | cut -c1-16)
  if [ ! -d "$dir" ]; then
    mkdir -p "$cache"
    local new
    new=$(mktemp -d "$dir.XXXX")
    mvn -B -q -f "$here/services/flink/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$new" >&2
    javac -cp "$new/*" -d "$new" "$here"/services/flink/*.java >&2
    mv -T "$new" "$dir" 2>/dev/null || rm -rf "$new"
  fi
  echo "$dir"
}

need_kafka() {
  need openssl openssl
  need java default-jre-headless
  need mvn maven
}

missing=()
need cc build-essential
need curl curl
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
# librdkafka is built with these.
need pkg-config pkg-config
[ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
case ${1-} in
  build)
    install_missing
    rust
    ;;
  test)
    need mosquitto mosquitto
    need mosquitto_pub mosquitto-clients
    need haproxy haproxy
    have_postgres || missing+=(postgresql-15)
    need pgrep procps
    need prometheus-alertmanager prometheus-alertmanager
    need promtool prometheus
    need prometheus prometheus
    need faketime faketime
    need openssl openssl
    need mkfs.ext4 e2fsprogs
    need losetup mount
    need node nodejs
    need npm npm
    need_kafka
    need javac default-jdk-headless
    need python3 python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    install_missing
    rust
    rust_lints
    mkdir -p "$cache"
    kafka_jars >/dev/null
    s3_server >/dev/null
    flink_jobs >/dev/null
    echo "DUNLIN_TEST_VENV=$(venv)"
    echo "DUNLIN_TEST_NODE=$(node_modules)"
    ;;
  fuzz)
    need c++ build-essential
    install_missing
    rust
    mkdir -p "$cache"
    cargo_fuzz
    ;;
  kafka)
    need_kafka
    install_missing
    kafka_jars
    ;;
  s3)
    need c++ build-essential
    install_missing
    rust
    mkdir -p "$cache"
    s3_server
    ;;
  flink)
    need javac default-jdk-headless
    need mvn maven
    install_missing
    flink_jobs
    ;;
  *)
    sed -n '2,8s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
