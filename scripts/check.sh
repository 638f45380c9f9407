#!/usr/bin/env bash
# What has to be right before each commit, in under two minutes. The arguments are the packages for the race detector.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=0
step() { # name, command...
  local name=$1 began=$SECONDS out
  shift
  if out=$("$@" 2>&1); then
    printf 'ok    %-12s %3d s\n' "$name" $((SECONDS - began))
  else
    printf 'FAIL  %-12s %3d s\n%s\n' "$name" $((SECONDS - began)) "$out"
    failed=1
  fi
}
format() {
  local files
  files=$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l) || return
  [ -z "$files" ] || { printf 'gofmt would change:\n%s\n' "$files" && return 1; }
}
modules() {
  local diff
  diff=$(go mod tidy -diff 2>&1 | grep -v '^go: \(finding\|found\|downloading\)'; exit "${PIPESTATUS[0]}") || { printf 'go mod tidy would change go.mod or go.sum:\n%s\n' "$(head -n 20 <<<"$diff")" && return 1; }
}
tools() {
  for dir in bench scripts; do
    go vet -C "$dir" ./... || return
  done
}
race() {
  if ! command -v gcc >/dev/null; then
    echo "The race detector needs gcc: run scripts/install.sh test"
    return 1
  fi
  CGO_ENABLED=1 go test -race -short -timeout 5m "$@" | grep -v '^ok\|no test files'
  return "${PIPESTATUS[0]}"
}

export CGO_ENABLED=0
step format format
step modules modules
step layers go test .
step vet go vet ./...
step tools tools
step staticcheck go tool staticcheck ./...
step race race "$@"
exit $failed
