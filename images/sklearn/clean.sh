#!/bin/sh
# clean.sh removes from the root file system $1 what differs between two installations of the same packages, and compiles
# Python's byte code so that it does not.
set -eu
root=$1

find "$root/usr/lib/python3/dist-packages" -type d -name tests -prune -exec rm -rf {} +
find "$root/usr" -type d -name __pycache__ -prune -exec rm -rf {} +
# unchecked-hash: byte code holds no timestamps and is never compiled again on a node, whose image is read-only.
chroot "$root" env PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 python3 -S -m compileall -q -j 1 --invalidation-mode unchecked-hash \
	/usr/lib/python3 /usr/lib/python3.* || true # a few files of packages are for other versions of the language

# perl-base stays: dpkg needs it. The rest of Perl came with a library that nothing here calls.
rm -rf "$root"/usr/share/perl "$root"/usr/lib/*-linux-gnu/perl "$root"/usr/lib/*-linux-gnu/libperl.so*

rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id" "$root/etc/hostname" "$root/etc/resolv.conf" \
	"$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99* \
	"$root/var/cache/ldconfig/aux-cache" "$root"/etc/*- "$root"/var/lib/dpkg/*-old "$root"/var/cache/debconf/*-old \
	"$root"/etc/dpkg/dpkg.cfg.d/*mmdebstrap
rm -rf "$root"/var/log/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/lib/systemd/random-seed "$root"/tmp/* "$root"/var/tmp/*

# The packages and their versions, for whoever asks what is in the image.
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' >"$root/etc/casemate-image"
chroot "$root" python3 -c 'import sklearn.linear_model, numpy, scipy' # an image that cannot do its work is no image
find "$root/usr" "$root/etc" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
