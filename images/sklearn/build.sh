#!/bin/sh
# build.sh makes the curated image casemate/sklearn: an OCI image layout with
# Python 3 and scikit-learn from the packages of this machine's own Debian or
# Ubuntu release, through the machine's own apt sources.
#
#   build.sh [-f] [-c CACHE] OUT       (root; needs mmdebstrap, dpkg-deb, casemate)
#
# OUT becomes a link to the layout in CACHE (default /var/cache/casemate/images).
# A layout whose package versions are still the newest that apt knows is used
# again; -f builds anyway. The same packages give the same image digest:
# timestamps are clamped to SOURCE_DATE_EPOCH, byte code is compiled here in one
# process with a fixed hash seed, and what differs between two installations
# (machine id, logs, caches, random seeds) is removed.
#
# CASEMATE names the casemate binary (default: casemate in PATH).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=/var/cache/casemate/images
force=
while getopts fc: opt; do
	case $opt in
	f) force=1 ;;
	c) cache=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || { echo "usage: build.sh [-f] [-c CACHE] OUT" >&2; exit 2; }
out=$1
casemate=${CASEMATE:-casemate}
tag=casemate/sklearn:1
packages=python3-sklearn,libopenblas0-pthread

for tool in mmdebstrap dpkg-deb unshare "$casemate"; do
	command -v "$tool" >/dev/null || { echo "build.sh: $tool is missing" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "build.sh: root is needed, to install packages into a directory" >&2; exit 1; }
. /etc/os-release
[ -n "${VERSION_CODENAME:-}" ] || { echo "build.sh: this system is neither Debian nor Ubuntu" >&2; exit 1; }

# What the image is made by, beside packages.
recipe=$( (cat "$here/build.sh" "$here/clean.sh"; dpkg --print-architecture; "$casemate" image pack --version) | sha256sum | cut -c1-24)

# Asking apt what it would install takes seconds; as long as its lists are the same the answer is.
seen() {
	echo "$cache/.seen-$( (echo "$recipe"; cat /var/lib/apt/lists/*Release 2>/dev/null) | sha256sum | cut -c1-24)"
}
seen=$(seen)
if [ -z "$force" ] && [ -s "$seen" ]; then
	layout=$cache/$(cat "$seen")
	if [ -f "$layout/index.json" ]; then
		ln -sfn "$layout" "$out"
		exit 0
	fi
fi

# The cache key: what apt would install on an empty system, and the recipe.
plan() {
	# shellcheck disable=SC2046
	apt-get -s -qq --no-install-recommends -o Dir::State::status=/dev/null install '?essential' $(echo "$packages" | tr , ' ') |
		sed -n 's/^Inst \([^ ]* ([^ ]*\) .*/\1/p' | sort
}
plan=$(plan 2>/dev/null)
[ -n "$plan" ] || { apt-get update -qq && plan=$(plan); } || true
[ -n "$plan" ] || { echo "build.sh: apt knows no python3-sklearn" >&2; exit 1; }
layout=$cache/sklearn-$(echo "$recipe $plan" | sha256sum | cut -c1-24)

mkdir -p "$cache"
finish() {
	basename "$layout" >"$(seen)"
	ln -sfn "$layout" "$out"
}
if [ -z "$force" ] && [ -f "$layout/index.json" ]; then
	finish
	exit 0
fi

work=$(mktemp -d "$cache/.build-XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

# SciPy's package depends on python3-pythran, a compiler it needs only to be built. It would bring a C++ tool chain of
# 500 MB, which has no place next to sensitive data, so an empty package of that name stands in for it.
stand_in() {
	mkdir -p "$work/pythran/DEBIAN" "$work/repo"
	cat >"$work/control" <<-EOF
		Package: python3-pythran
		Version: 99:0
		Architecture: all
		Maintainer: Casemate
		Description: stands in for a compiler that is not used at run time
	EOF
	cp "$work/control" "$work/pythran/DEBIAN/control"
	find "$work/pythran" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	dpkg-deb --root-owner-group -Znone --build "$work/pythran" "$work/repo/pythran.deb" >/dev/null
	{
		cat "$work/control"
		echo "Filename: ./pythran.deb"
		echo "Size: $(stat -c %s "$work/repo/pythran.deb")"
		echo "SHA256: $(sha256sum "$work/repo/pythran.deb" | cut -d' ' -f1)"
	} >"$work/repo/Packages"
	chmod -R a+rX "$work"
}

# The release's own sources of this machine, without those that others added.
sources() {
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources; do
		if [ -s "$f" ] && grep -q '^[[:space:]]*\(deb\|Types:\)' "$f"; then
			echo "$f"
		fi
	done
}

export SOURCE_DATE_EPOCH=1700000000 LC_ALL=C.UTF-8 TMPDIR="$work"
stand_in
[ -n "$(sources)" ] || { echo "build.sh: found no apt sources of this release" >&2; exit 1; }
options=$(apt-config dump | sed -n 's/^\(Acquire::\(http\|https\)::Proxy\|Acquire::Check-Valid-Until\|Acquire::Check-Date\) \(".*"\);$/\1 \3/p')
set --
while IFS= read -r line; do
	[ -z "$line" ] || set -- "$@" "--aptopt=$line"
done <<EOF
$options
EOF
for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/lintian/*' '/usr/share/bash-completion/*' \
	'/usr/include/*' '/usr/lib/*.a' '/usr/share/zoneinfo/*' '/usr/share/icons/*' '/usr/share/pixmaps/*'; do
	set -- "$@" "--dpkgopt=path-exclude=$path"
done
set -- "$@" '--dpkgopt=path-include=/usr/share/doc/*/copyright' # licences travel with what they cover

# shellcheck disable=SC2046
unshare --mount --propagation private mmdebstrap --quiet --mode=root --variant=essential --format=tar --include="$packages" \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' "$@" \
	--customize-hook="$here/clean.sh" \
	"$VERSION_CODENAME" "$work/rootfs.tar" $(sources) "deb [trusted=yes] copy:$work/repo ./" >&2

"$casemate" image pack --rootfs "$work/rootfs.tar" --tag "$tag" --out "$work/layout" >&2
rm -rf "$layout"
mv "$work/layout" "$layout"
finish
