#!/usr/bin/env bash
# Compares the protocol with the one of the previous commit that touched it: no wire-breaking change may land.
set -euo pipefail
cd "$(dirname "$0")/.."
against=""
if git rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
  if git diff --quiet HEAD -- protos/stafett; then
    against=$(git rev-list -n 1 --skip=1 HEAD -- protos/stafett)
  else
    against=$(git rev-parse HEAD)
  fi
fi
if [ -z "$against" ]; then
  echo "buf breaking: no earlier protocol in this history to compare with"
  exit 0
fi
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
# Only our own protocol is taken out: what is absent there (containerd's and CRI's) is not compared. --path would be
# looked up in both trees and is refused for the one outside this directory.
git archive "$against" protos/stafett buf.yaml | tar -x -C "$before"
buf breaking --against "$before"
