#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Each patch in faults/ breaks a copy of a translator in one way. The test that
# the patch names must fail with it, and pass without it. Prints KTAP.
#
# Called by the Makefile with TOP OBJDIR FAULTDIR, and CC and CFLAGS in the
# environment. OBJDIR has the objects of the unbroken program.

set -u

top=$1
obj=$2
faults=$3
work=$obj/faults
bad=0
num=0

caught_by() {
	sed -n 's/^Caught-by: //p' "$1"
}

# Prints why the fault is not caught, nothing if it is.
run_fault() {
	patch=$1
	name=$2
	test=$3
	dir=$work/$name
	src=$(sed -n 's,^+++ b/\([^	 ]*\).*,\1,p' "$patch")

	[ -n "$test" ] || { echo "names no test"; return; }
	[ -f "$top/$src" ] || { echo "names no file"; return; }
	mkdir -p "$dir/$(dirname "$src")"
	cp "$top/$src" "$dir/$src"
	if ! patch -d "$dir" -p1 -F0 -s --no-backup-if-mismatch \
		< "$patch" > "$dir/log" 2>&1; then
		echo "patch no longer applies"
		return
	fi
	base=$(basename "$src" .c)
	# shellcheck disable=SC2086 # a list of flags
	if ! $CC $CFLAGS -I"$top/$(dirname "$src")" -c -o "$dir/$base.o" \
		"$dir/$src" > "$dir/log" 2>&1; then
		echo "does not compile"
		return
	fi
	others=
	for o in "$obj"/*.o; do
		[ "$o" = "$obj/$base.o" ] || others="$others $o"
	done
	# shellcheck disable=SC2086 # lists
	if ! $CC $CFLAGS -o "$dir/test" "$dir/$base.o" $others \
		> "$dir/log" 2>&1; then
		echo "does not link"
		return
	fi
	"$dir/test" "$test" > "$dir/log" 2>&1
	if [ $? -ne 1 ] || ! grep -q "^not ok 1 - $test\$" "$dir/log"; then
		echo "not caught by test $test"
	fi
}

rm -rf "$work"
mkdir -p "$work"

set -- "$faults"/*.patch
[ -f "$1" ] || { echo "Bail out! no faults"; exit 1; }
echo "TAP version 13"
echo "1..$(($# + 1))"

# Without a fault these tests pass, or the rest means nothing.
tests=$(for p in "$@"; do caught_by "$p"; done | sort -u)
num=$((num + 1))
# shellcheck disable=SC2086 # a list of names
if "$obj/iommu_inval_test" $tests > "$work/log" 2>&1; then
	echo "ok $num - no fault, and all tests named below pass"
else
	grep -E '^(#|not ok)' "$work/log" | sed 's/^[^#]/# &/'
	echo "not ok $num - no fault, and all tests named below pass"
	bad=1
fi

for p in "$@"; do
	name=$(basename "$p" .patch)
	test=$(caught_by "$p")
	num=$((num + 1))
	why=$(run_fault "$p" "$name" "$test")
	if [ -z "$why" ]; then
		echo "ok $num - fault $name caught by test $test"
	else
		echo "not ok $num - fault $name $why"
		bad=1
	fi
done
exit $bad
