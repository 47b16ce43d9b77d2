#!/usr/bin/env bash
# Installs Prometheus, which some tests start, on a Debian machine whose root this is. Where that
# cannot be done those tests are skipped, and say so.
set -euo pipefail

skipped() {
    echo "prometheus is not installed ($1): tests that need it will be skipped" >&2
    exit 0
}

if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    exit 0
fi
command -v apt-get >/dev/null || skipped "there is no apt-get"
((EUID == 0)) || skipped "apt-get needs root"

echo "installing prometheus ..."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# No package starts its service in runlevel 1; where systemd decides instead, it is told below.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
if ! { timeout 300 apt-get update &&
    timeout 300 apt-get install -y --no-install-recommends prometheus; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    skipped "apt-get failed, see above"
fi
if [[ -d /run/systemd/system ]]; then
    systemctl disable --now prometheus >/dev/null 2>&1 || true
fi
