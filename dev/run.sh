#!/usr/bin/env bash
# Starts the platform with a small simulated fleet and says where to look. Ctrl-C stops both.
set -euo pipefail
command -v curl >/dev/null || { echo "run: curl is missing; dev/setup.sh build installs it" >&2; exit 1; }
dunlin=$1 data=$2 devices=$3
mqtt=${MQTT:-127.0.0.1:1883} http=${HTTP:-127.0.0.1:8080}

"$dunlin" serve --data "$data" --mqtt "$mqtt" --http "$http" &
server=$!
trap 'kill -TERM $server 2>/dev/null; wait $server 2>/dev/null' EXIT
until curl -fs "http://$http/readyz" >/dev/null; do
    kill -0 $server 2>/dev/null || { wait $server; exit; }
    sleep 0.2
done

cat <<EOF

  Dunlin is running with $devices simulated devices. In another terminal:

    export PATH=$(dirname "$dunlin"):\$PATH DUNLIN_TOKEN=\$(cat $data/admin.token) DUNLIN_URL=http://$http
    dunlin top                                            rates, latencies, ledger, alerts, lag
    dunlin query 'SELECT * FROM readings ORDER BY time DESC LIMIT 10'
    dunlin alerts
    dunlin ledger
    curl -H "Authorization: Bearer \$DUNLIN_TOKEN" \$DUNLIN_URL/metrics

  A device of your own:

    TOKEN=\$(dunlin device add pump-1 --type pump)
    mosquitto_pub -h ${mqtt%:*} -p ${mqtt##*:} -u \$TOKEN -t v1/telemetry -q 1 -m '{"temperature": 21.5}'

  API http://$http   rules $data/rules   stop with Ctrl-C

EOF
DUNLIN_TOKEN=$(cat "$data/admin.token") "$dunlin" simulate --devices "$devices" --rate 1/s --mqtt "$mqtt" --url "http://$http"
