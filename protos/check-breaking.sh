#!/usr/bin/env bash
# Compares the protocol with the one of the previous commit that touched it: no wire-breaking change may land.
set -euo pipefail
cd "$(dirname "$0")/.."
against=$(git rev-list -n 1 --skip=1 HEAD -- protos/stafett 2>/dev/null || true)
if ! git diff --quiet HEAD -- protos/stafett 2>/dev/null; then
  against=$(git rev-parse HEAD)
fi
if [ -z "$against" ]; then
  echo "buf breaking: no earlier protocol in this history to compare with"
  exit 0
fi
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$against" protos buf.yaml | tar -x -C "$before"
buf breaking --against "$before"
