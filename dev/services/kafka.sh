#!/usr/bin/env bash
# Apache Kafka's own broker on loopback, KRaft, small heaps. Broker 1 is the controller as well.
#   kafka.sh start BROKERS DIR     on free ports; DIR/bootstrap says which. With SECURE=1 also a door with TLS and SCRAM:
#                                  DIR/bootstrap-secure, DIR/ca.pem, user dunlin, password secret. With DOORS='PORT PORT ...',
#                                  of one broker, also doors that call themselves by those ports of others, who carry to
#                                  those in DIR/doors
#   kafka.sh ready DIR             waits until it answers
#   kafka.sh stop DIR [BROKER]     one or all, in an orderly way
#   kafka.sh kill DIR BROKER       at once, as a crash would
#   kafka.sh resume DIR BROKER     starts one again, on what it had
#   kafka.sh lend BROKERS DIR      start, ready, a line "ready"; when its standard input ends, stops and removes DIR
#   kafka.sh tool CLASS ARGS...    one of the tools, e.g. org.apache.kafka.tools.TopicCommand
# With FAST=1 brokers and tools run as Kafka's own scripts run them, for measurements.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
jars=$("$here/../setup.sh" kafka)

# The least that makes a small broker start fast; a test's broker does not live long enough for more.
java_options=(-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto)
broker_heap=(-Xms64m -Xmx256m) tool_heap=(-Xmx128m)
if [ -n "${FAST-}" ]; then
  java_options=(-XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 -XX:+ExplicitGCInvokesConcurrent)
  broker_heap=(-Xms1g -Xmx1g) tool_heap=(-Xmx512m)
fi
jvm() { exec java "${java_options[@]}" -cp "$jars/*" "$@"; }
broker() { jvm "${broker_heap[@]}" "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties" kafka.Kafka "$@"; }

# Below the range from which connections get theirs; none twice, as nobody listens yet.
free_port() {
  local port given=$1/ports
  while port=$((20000 + RANDOM % 12000))
    grep -qx "$port" "$given" 2>/dev/null || (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null
  do :; done
  echo "$port" | tee -a "$given"
}

# A certificate that signs itself, for 127.0.0.1.
certify() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=kafka \
    -addext subjectAltName=IP:127.0.0.1 -keyout "$1/key.pem" -out "$1/ca.pem" 2>/dev/null
  cat "$1/key.pem" "$1/ca.pem" >"$1/broker.pem"
}

configure() {
  local brokers=$1 dir=$2 id port secure replicas=$((brokers < 3 ? brokers : 3))
  local controller bootstrap=() bootstrap_secure=()
  controller=$(free_port "$dir")
  [ -z "${SECURE-}" ] || certify "$dir"
  : >"$dir/doors"
  for id in $(seq "$brokers"); do
    port=$(free_port "$dir")
    bootstrap+=("127.0.0.1:$port")
    mkdir -p "$dir/broker-$id"
    local roles=broker listeners=PLAINTEXT://127.0.0.1:$port advertised named door
    local protocols=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
    if [ -n "${SECURE-}" ]; then
      secure=$(free_port "$dir")
      bootstrap_secure+=("127.0.0.1:$secure")
      listeners+=,SASL_SSL://127.0.0.1:$secure
    fi
    advertised=$listeners
    for named in ${DOORS-}; do
      door=$(free_port "$dir")
      echo "$door" >>"$dir/doors"
      listeners+=,DOOR$named://127.0.0.1:$door advertised+=,DOOR$named://127.0.0.1:$named protocols+=,DOOR$named:PLAINTEXT
    done
    [ "$id" != 1 ] || { roles=broker,controller; listeners+=,CONTROLLER://127.0.0.1:$controller; }
    cat >"$dir/broker-$id/server.properties" <<CONF
process.roles=$roles
node.id=$id
broker.rack=rack-$id
listeners=$listeners
advertised.listeners=$advertised
controller.listener.names=CONTROLLER
listener.security.protocol.map=$protocols
controller.quorum.voters=1@127.0.0.1:$controller
log.dirs=$dir/broker-$id/data
auto.create.topics.enable=false
default.replication.factor=$replicas
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=$replicas
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
replica.lag.time.max.ms=3000
CONF
    [ -z "${SECURE-}" ] || cat >>"$dir/broker-$id/server.properties" <<CONF
ssl.keystore.type=PEM
ssl.keystore.location=$dir/broker.pem
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
CONF
  done
  (IFS=,; echo "${bootstrap_secure[*]}" >"$dir/bootstrap-secure")
  (IFS=,; echo "${bootstrap[*]}" >"$dir/bootstrap")
}

format() {
  local id=AAAAAAAAAAAAAAAAAAAAAA settings user=()
  [ -z "${SECURE-}" ] || user=(--add-scram 'SCRAM-SHA-512=[name=dunlin,password=secret]')
  for settings in "$1"/broker-*/server.properties; do
    (jvm -Xmx128m kafka.tools.StorageTool format -t "$id" -c "$settings" ${user[@]+"${user[@]}"}) >"${settings%/*}/format.out" 2>&1 &
  done
  for _ in "$1"/broker-*; do wait -n || { cat "$1"/broker-*/format.out >&2; return 1; }; done
}

resume() {
  local dir=$1/broker-$2
  # In its own session, so that a Ctrl-C meant for the tests leaves it to be stopped in order.
  (broker "$dir/server.properties" >>"$dir/out" 2>&1 </dev/null & echo $! >"$dir/pid")
}

start() {
  local brokers=$1 dir=$2 id
  mkdir -p "$dir"
  configure "$brokers" "$dir"
  format "$dir"
  for id in $(seq "$brokers"); do resume "$dir" "$id"; done
}

ready() {
  local dir=$1 address
  for address in $(tr , ' ' <"$dir/bootstrap"); do
    for _ in $(seq 1800); do
      (exec 3<>"/dev/tcp/${address%:*}/${address#*:}") 2>/dev/null && continue 2
      sleep 0.1
    done
    echo "kafka does not listen on $address" >&2
    tail -n 20 "$dir"/broker-*/out >&2
    return 1
  done
}

signal() {
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 0
  kill "-$2" "$pid" 2>/dev/null || true
}

gone() {
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 0
  for _ in $(seq 200); do kill -0 "$pid" 2>/dev/null || { rm -f "$1/pid"; return 0; }; sleep 0.05; done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1/pid"
}

# The controller last: the others tell it that they go.
stop() {
  local dir
  for dir in $(printf '%s\n' "$1"/broker-${2-*} | sort -r); do signal "$dir" TERM; gone "$dir"; done
}

case ${1-} in
  start) start "$2" "$(realpath -m "$3")" ;;
  ready) ready "$2" ;;
  stop) stop "$2" ${3-} ;;
  kill) signal "$2/broker-$3" KILL; gone "$2/broker-$3" ;;
  resume) resume "$(realpath -m "$2")" "$3" ;;
  lend)
    dir=$(realpath -m "$3")
    start "$2" "$dir"
    trap 'stop "$dir"; rm -rf "$dir"' EXIT
    ready "$dir"
    echo ready
    cat >/dev/null
    ;;
  tool) jvm "${tool_heap[@]}" "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties" "${@:2}" ;;
  *) sed -n '2,14s/^# *//p' "$0" >&2; exit 2 ;;
esac
