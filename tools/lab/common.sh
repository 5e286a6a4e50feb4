# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# What every part of the lab uses: where things are, messages, locks, long steps, packages.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
lab=$repo/tools/lab

# The caller's environment must not reach the builds.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES GNUMAKEFLAGS CDPATH ARCH SRCARCH CROSS_COMPILE
unset LOCALVERSION KBUILD_OUTPUT KCONFIG_ALLCONFIG KCONFIG_CONFIG CC CXX LD CFLAGS CXXFLAGS LDFLAGS
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE PYTHONPATH PYTHONHOME
export LC_ALL=C
# The system's tools first: QEMU's configure wants the Python whose modules the packages install.
export PATH=/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin:$PATH

cache=${VHOST_IOMMU_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}/.cache}/vhost-iommu}
[[ $cache == /* ]] || cache=$PWD/$cache
jobs=$(nproc)
export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$cache/work CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=5G CCACHE_DEPEND=1

# --- messages ---

step_now=0
step_all=0

# A command that takes N long steps says so first; then each step is numbered.
plan() {
	step_now=0
	step_all=$1
}

step() {
	if ((step_all > 0)); then
		step_now=$((step_now < step_all ? step_now + 1 : step_all))
		echo "[$step_now/$step_all] $*" >&2
	else
		echo "$*" >&2
	fi
}

note() {
	echo "      $*" >&2
}

warn() {
	echo "lab: warning: $*" >&2
}

# die CAUSE [REMEDY]...
die() {
	echo "lab: $1" >&2
	shift
	for line in "$@"; do
		echo "     $line" >&2
	done
	exit 2
}

# --- cleaning up ---

child=
scratch_dirs=()
scratch_top=

# shellcheck disable=SC2329 # called by trap
at_exit() {
	local rc=$?

	trap - EXIT INT TERM HUP
	if [[ $child ]]; then
		kill -TERM -- "-$child" 2>/dev/null || kill -TERM "$child" 2>/dev/null || true
	fi
	for child in $(builtin jobs -rp); do
		kill -TERM -- "-$child" 2>/dev/null || true
	done
	((${#scratch_dirs[@]} == 0)) || rm -rf "${scratch_dirs[@]}"
	# a subshell's directories are below those of the script, which outlives it
	[[ ! $scratch_top || $BASHPID != "$$" ]] || rm -rf "$scratch_top"
	exit "$rc"
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

scratch_top=$(mktemp -d "${TMPDIR:-/tmp}/vhost-iommu.XXXXXX")

# scratch VARIABLE: a directory that disappears when the script ends
scratch() {
	local scratch_new

	scratch_new=$(mktemp -d "$scratch_top/XXXXXX")
	printf -v "$1" %s "$scratch_new"
}

# --- locks ---
#
# Clones of the repository, and runs of one clone, share the cache. A tree has three kinds of locks:
#   TREE.sync      who brings the tree's files up to date holds it
#   TREE           who builds from the tree shares it; changing what builds read wants it alone
#   TREE.KIND      one build directory; QEMU's is shared by those who find it built
# in this order; nobody takes one of another tree meanwhile, so no two runs wait for each other.

declare -A lock_fd=()

# lock FILE WHAT [-s]: -s shares it
lock() {
	local file=$1 what=$2 mode=${3:--x} fd holder

	mkdir -p "$(dirname "$file")"
	if [[ ${lock_fd[$file]:-} ]]; then
		fd=${lock_fd[$file]}
	else
		exec {fd}>>"$file"
		lock_fd[$file]=$fd
	fi
	if ! flock -n "$mode" "$fd"; then
		holder=$(tail -n 1 "$file" 2>/dev/null || true)
		echo "lab: waiting for ${holder:-another run}: it is using $what" >&2
		flock "$mode" "$fd"
	fi
	echo "process $$ ($repo, since $(date +%H:%M:%S))" >"$file"
}

unlock() {
	local fd=${lock_fd[$1]:-}

	[[ $fd ]] || return 0
	flock -u "$fd" # closing would not do while a child has it open as well
	exec {fd}>&-
	unset "lock_fd[$1]"
}

# Let others change what the last build_... has made.
release() {
	local file

	for file in "${!lock_fd[@]}"; do
		unlock "$file"
	done
}

# --- long steps ---

# long LABEL LOG EXPECTED PATTERN COMMAND...: run COMMAND with its output in LOG, and say how far it
# is: how many lines match PATTERN, of the EXPECTED number (0: unknown). PATTERN "ninja" reads
# ninja's own count.
long() {
	local label=$1 log=$2 expected=$3 pattern=$4
	local start=$SECONDS said=$SECONDS rc=0 far tty=
	shift 4

	[[ ! -t 2 ]] || tty=1
	mkdir -p "$(dirname "$log")"
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	child=$!
	set +m
	while kill -0 "$child" 2>/dev/null; do
		sleep 0.3
		if [[ $tty ]] || ((SECONDS - said >= 30)); then
			said=$SECONDS
			far=$(how_far "$log" "$expected" "$pattern")
			if [[ $tty ]]; then
				printf '\r\033[K      %s ... %s' "$label" "$far" >&2
				sleep 0.7
			else
				note "$label ... $far ($((SECONDS - start)) s)"
			fi
		fi
	done
	[[ ! $tty ]] || printf '\r\033[K' >&2
	wait "$child" || rc=$?
	child=
	if ((rc)); then
		{
			echo "lab: $label failed (exit $rc). The end of its log:"
			{ grep -n -E -i '(error|fatal|undefined reference|warning: .*\[-Werror|No rule to make)' "$log" |
				head -n 15; } || true
			echo "     ..."
			tail -n 15 "$log"
			echo "     The whole log: $log"
		} >&2
		return 1
	fi
	note "$label: done in $((SECONDS - start)) s"
}

how_far() {
	local log=$1 expected=$2 pattern=$3 n

	if [[ $pattern == ninja ]]; then
		n=$(grep -o -E '^\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -d '[]' || true)
		echo "${n:-configuring}"
	else
		n=$(grep -c -E "$pattern" "$log" || true)
		if ((expected > 0 && n <= expected)); then
			echo "$n/$expected"
		else
			echo "$n"
		fi
	fi
}

# --- packages ---

# need_packages [test]
need_packages() {
	local want missing

	if ! command -v dpkg-query >/dev/null; then
		return 0 # not Debian: what is missing will say so itself
	fi
	want=$(awk -v group="${1:-build}" '/^[a-z]/ && ($2 == "build" || $2 == group) { print $1 }' "$lab/packages")
	# shellcheck disable=SC2086 # a list of words
	missing=$(comm -23 <(printf '%s\n' $want | sort -u) \
		<(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $want 2>/dev/null |
			sed -n 's/^installed //p' | sort -u) | tr '\n' ' ')
	missing=${missing% }
	[[ $missing ]] || return 0
	if ((EUID != 0)); then
		die "packages are missing. As root: apt-get install -y --no-install-recommends $missing"
	fi
	step "installing packages: $missing"
	export DEBIAN_FRONTEND=noninteractive
	long "apt-get update" "$cache/logs/apt-update.log" 0 '^(Get|Hit):' \
		apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update ||
		die "apt-get update failed" "Check the machine's apt configuration and its network."
	# shellcheck disable=SC2086
	long "apt-get install" "$cache/logs/apt-install.log" 0 '^Setting up' \
		apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install -y --no-install-recommends $missing ||
		die "the packages could not be installed" "By hand: apt-get install -y --no-install-recommends $missing"
}
