#!/usr/bin/env bash
# Runs the end-to-end tests against the debug binaries. Arguments go to pytest.
#   DUNLIN_E2E_KILLS=50 DUNLIN_E2E_POWERCUTS=20 dev/e2e.sh -k 'kill or power'
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=$("$here/setup.sh" test)
export ${tools?}
exec env PYTHONDONTWRITEBYTECODE=1 "$DUNLIN_TEST_VENV/bin/python" -m pytest -p no:cacheprovider "$here/e2e" "$@"
