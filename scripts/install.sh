#!/usr/bin/env bash
# Installs what a fresh Debian or Ubuntu lacks, saying what and why. On another system it names what is missing and stops.
#
#   scripts/install.sh run    what `casemate serve` and `casemate demo` need
#   scripts/install.sh test   the same, and what the tests need
#   scripts/install.sh ci     the same, and the large outside clients
#
# Nothing is downloaded or changed when nothing is missing.
set -euo pipefail

export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# set | what shows that it is there | package | why
# A path shows a file; everything else is a command. An optional package may be absent from a system's archive.
needs='
run|crun|crun|starts nodes (OCI runtime)
run|runc|runc|starts nodes where crun fails its self-test
run|mkfs.ext4|e2fsprogs|makes the encrypted scratch disk of a node
run|umount|mount|lets crun start where both cgroup trees are mounted
run|unshare|util-linux|gives image builds and tests mount namespaces of their own
run|mmdebstrap|mmdebstrap|builds the curated images from the distribution'\''s packages
run|/etc/ssl/certs/ca-certificates.crt|ca-certificates|lets mmdebstrap and clients verify servers
test|gcc|gcc|race detector
test|/usr/include/stdlib.h|libc6-dev|race detector
test|python3|python3|runs the scoring server in tests
test|skopeo|skopeo|outside client: registry
test|podman|podman|outside client: registry; peer of the node benchmark
ci|make|make|runs this file'\''s caller
ci|git|git|names the version that is built
ci|az|azure-cli (optional)|outside client: command line
ci|node|nodejs|outside client: JavaScript
ci|npm|npm|outside client: JavaScript
ci|/usr/lib/python3/dist-packages/ensurepip /usr/lib/python3*/ensurepip|python3-venv|outside client: Python
'

case "${1:-}" in
run) wanted='run' ;;
test) wanted='run test' ;;
ci) wanted='run test ci' ;;
*)
  echo "usage: $0 run|test|ci" >&2
  exit 2
  ;;
esac

present() {
  local what
  case $1 in
  /*)
    # One of several paths, each of which may be a pattern.
    for what in $1; do [ -e "$what" ] && return 0; done
    return 1
    ;;
  *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

packages=() report=''
while IFS='|' read -r set shows package why; do
  case " $wanted " in *" $set "*) ;; *) continue ;; esac
  present "$shows" && continue
  packages+=("$package")
  report+=$(printf '  %-24s %s' "$package" "$why")$'\n'
done <<<"$needs"

# Curated images are made from the release's packages, so somebody must have asked for their list once.
lists() { compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; }

if [ ${#packages[@]} -eq 0 ]; then
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && ! lists; then
    echo 'Fetching the lists of packages, from which curated images are made.'
    apt-get -q -y -o DPkg::Lock::Timeout=300 update >/dev/null
  fi
  exit 0
fi

# shellcheck source=/dev/null
family=$(. /etc/os-release 2>/dev/null && echo " ${ID:-} ${ID_LIKE:-} " || true)
case $family in
*' debian '* | *' ubuntu '*) ;;
*)
  printf 'These are missing, and this script installs only on Debian and Ubuntu; please install them:\n%s' "$report" >&2
  exit 1
  ;;
esac
if [ "$(id -u)" -ne 0 ]; then
  echo "Missing: ${packages[*]}. Run \`sudo $0 $1\` once, since installing packages needs root." >&2
  exit 1
fi

printf 'Installing what is missing:\n%s' "$report"
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
"${apt[@]}" update >/dev/null
install=()
for package in "${packages[@]}"; do
  name=${package% (optional)}
  if [ "$name" != "$package" ] && ! apt-cache show "$name" >/dev/null 2>&1; then
    echo "$name is not among this system's packages: its tests will be skipped."
    continue
  fi
  install+=("$name")
done
[ ${#install[@]} -eq 0 ] && exit 0
log=$(mktemp)
if ! "${apt[@]}" --no-install-recommends install "${install[@]}" >"$log" 2>&1; then
  cat "$log" >&2
  rm -f "$log"
  echo "Installing failed; what the package manager said stands above." >&2
  exit 1
fi
rm -f "$log"
echo "Installed: ${install[*]}"
