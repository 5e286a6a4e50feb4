# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Checks that need no VM. Each prints KTAP: one test per file or patch.

tap_count=0

tap_plan() {
	echo "KTAP version 1"
	echo "1..$1"
	tap_count=0
}

# tap_run NAME COMMAND...: a test that passes if COMMAND succeeds; its output is shown if it does not
tap_run() {
	local name=$1 output rc=0
	shift

	output=$(
		# a subshell has none of the script's traps
		trap at_exit EXIT
		trap 'exit 143' TERM
		"$@" 2>&1
	) || rc=$?
	tap_count=$((tap_count + 1))
	if ((rc)); then
		[[ ! $output ]] || sed 's/^/# /' <<<"$output"
		echo "not ok $tap_count - $name"
	else
		echo "ok $tap_count - $name"
	fi
}

tap_skip() {
	tap_count=$((tap_count + 1))
	echo "ok $tap_count - $1 # SKIP $2"
}

# silent COMMAND...: fails if COMMAND fails or says anything
silent() {
	local output rc=0

	output=$("$@" 2>&1) || rc=$?
	[[ ! $output ]] || echo "$output"
	[[ ! $output ]] && return "$rc"
}

# --- patches ---

# A patch may be mailed as it is, and changes only files that exist upstream.
check_patch_form() {
	local patch=$1 bad=0

	sed '/^---$/q' "$patch" | grep -q '^Subject: ' || { echo "no subject"; bad=1; }
	[[ $(sed -n '/^Subject:/,/^---$/p' "$patch" | grep -c .) -gt 2 ]] ||
		{ echo "no message: say why"; bad=1; }
	if grep -q '^new file mode' "$patch"; then
		echo "it adds a file; new files lie in the repository at their path in the tree:"
		grep -A3 '^new file mode' "$patch" | grep '^+++'
		bad=1
	fi
	return "$bad"
}

# make check has applied the series already when the tree was made; here each patch gets its result.
check_patches() {
	local what=$1 dir patch file
	local -a patches

	sync_tree "$what" >&2
	make_tree "$what" >&2
	mapfile -t patches < <(find "$repo/$what-patches" -maxdepth 1 -name '*.patch' | LC_ALL=C sort)
	if ((${#patches[@]} == 0)); then
		tap_plan 1
		tap_skip "$what-patches" "the series is empty"
		return
	fi
	scratch dir
	while read -r file; do
		if [[ -f $base_dir/$file ]]; then
			mkdir -p "$dir/$(dirname "$file")"
			cp "$base_dir/$file" "$dir/$file"
		fi
	done < <(patch_targets "${patches[@]}")
	tap_plan $((2 * ${#patches[@]}))
	for patch in "${patches[@]}"; do
		tap_run "$(basename "$patch") applies" strictly_apply "$dir" "$patch" "$tree_id"
		tap_run "$(basename "$patch") is well-formed" check_patch_form "$patch"
	done
}

check_patches_linux() {
	check_patches linux
}

check_patches_qemu() {
	check_patches qemu
}

# --- checkpatch ---

# A vhost-iommu patch is signed off by whoever mails it. A file that is new upstream asks for an
# entry in MAINTAINERS, which is not ours to make.
checkpatch_linux() {
	local ignore=FILE_PATH_CHANGES

	# upstream's way to write trace events ends lines with a parenthesis
	[[ $* != *include/trace/events/* ]] || ignore+=,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT
	silent env -C "$tree" perl scripts/checkpatch.pl --strict --quiet --show-types --no-signoff \
		--ignore "$ignore" "$@"
}

checkpatch_qemu() {
	silent env -C "$tree" perl scripts/checkpatch.pl --quiet --no-signoff "$@"
}

# Of headers imported from Linux it only asks whether they are.
checkpatch_import() {
	env -C "$tree" perl scripts/checkpatch.pl --quiet --no-signoff "$@" | grep -q '^total: 0 errors, 1 warnings, '
}

# checkpatch_all linux|qemu PATTERN: our files that match, and the patches
checkpatch_all() {
	local what=$1 pattern=$2 file
	local -a files patches

	sync_tree "$what" >&2
	mapfile -t files < <("${what}_files" | grep -E "$pattern")
	mapfile -t patches < <(find "$repo/$what-patches" -name '*.patch' | LC_ALL=C sort)
	tap_plan $((${#files[@]} + ${#patches[@]}))
	for file in "${files[@]}"; do
		tap_run "$file" "checkpatch_$what" -f "$file"
	done
	for file in "${patches[@]}"; do
		if patch_targets "$file" | grep -q -v '^linux-headers/'; then
			tap_run "$(basename "$file")" "checkpatch_$what" "$file"
		else
			tap_run "$(basename "$file")" checkpatch_import "$file"
		fi
	done
}

check_checkpatch_linux() {
	checkpatch_all linux '^(drivers|include|tools/testing/selftests)/.*\.[ch]$'
}

check_checkpatch_qemu() {
	checkpatch_all qemu '\.[ch]$'
}

# --- compilers ---

# our_objects x86|arm64: objects of our files and of those that our patches touch
our_objects() {
	local arch=$1

	{
		linux_files
		series linux | xargs -r -d '\n' cat | patch_targets -
	} | grep -E '^drivers/.*\.c$' | LC_ALL=C sort -u | if [[ $arch == x86 ]]; then
		grep -v -E '^drivers/iommu/(arm|riscv)/'
	else
		grep -v -E '^drivers/iommu/(intel|amd|riscv)/'
	fi | sed 's/\.c$/.o/'
}

# prepare_check ARCH: a build directory in which single objects can be made: sets check_build, kmake_args
prepare_check() {
	local log stamp wanted

	select_arch "$1"
	check_build=build-check-$arch
	log=$cache/logs/$work_name-check-$arch.log
	kmake_args=(O="$check_build" "${arch_make[@]}")
	if [[ $arch == arm64 ]]; then
		wanted=$(merged_config "$lab/kernel-check-arm64.config")
	else
		# without DMI gcc warns of dmar.c as it is: %s of a name that is NULL then
		wanted=$(merged_config "$lab"/kernel-{common,x86,guest,guest-x86}.config)$'\nCONFIG_DMI=y'
		wanted=${wanted//=m/=y}
	fi
	lock "$tree_lock.$check_build" "the objects of make check ($arch)"
	mkdir -p "$tree/$check_build"
	stamp=$( (cat "$tree/.lab-build-hash"; echo "$wanted") | sha256sum | cut -d' ' -f1)
	[[ ! -f $tree/$check_build/.lab-stamp || $(<"$tree/$check_build/.lab-stamp") != "$stamp" ]] || return 0
	configure_kernel "$tree/$check_build" "$wanted" "$log" "${kmake_args[@]}" || return 1
	long "preparing ($arch)" "$log" 0 '^  (CC|AS|AR|LD|HOSTCC|HOSTLD)' \
		kmake "${kmake_args[@]}" prepare modules_prepare || return 1
	echo "$stamp" >"$tree/$check_build/.lab-stamp"
}

# compile_objects ARCH FLAGS...: one test per object: it compiles, and without a word
compile_objects() {
	local arch=$1 log object name
	local -a objects
	shift

	sync_tree linux >&2
	mapfile -t objects < <(our_objects "$arch")
	tap_plan $((2 + ${#objects[@]}))
	if ! tap_prepare "$arch"; then
		return 1
	fi
	scratch log
	# All at once first, for speed; then each for its own messages.
	(cd "$tree/$check_build" && rm -f "${objects[@]}")
	kmake "${kmake_args[@]}" -k "$@" "${objects[@]}" >"$log/all" 2>&1 || true
	for object in "${objects[@]}"; do
		name=${object%.o}.c
		tap_run "$name" object_is_clean "$log/all" "$object"
	done
	tap_run "nothing in headers" headers_are_clean "$log/all" "${objects[@]}"
}

tap_prepare() {
	prepare_check "$1" >&2
	local rc=$?

	tap_count=1
	if ((rc)); then
		echo "not ok 1 - $1: configured"
		return 1
	fi
	echo "ok 1 - $1: configured"
}

object_is_clean() {
	local log=$1 object=$2 file

	file=${object%.o}
	if grep -E "(^|/|\s)$file\.[ch]:[0-9]+" "$log"; then
		return 1
	fi
	[[ -f $tree/$check_build/$object ]] || {
		echo "it was not built:"
		grep -i -E 'error|\*\*\*' "$log" | head -n 10
		return 1
	}
}

headers_are_clean() {
	local log=$1 names
	shift

	names=$(printf '%s\n' "${@/%.o/.c:}")
	! grep -E ':[0-9]+: *(warning|error|fatal)' "$log" | grep -v -F "$names"
}

check_sparse() {
	compile_objects x86 W=1 C=2 CF=-Wsparse-error
}

check_arm64() {
	local -a objects

	if ! command -v aarch64-linux-gnu-gcc >/dev/null; then
		tap_plan 1
		tap_skip "arm64 objects" "no compiler: install gcc-aarch64-linux-gnu"
		return
	fi
	compile_objects arm64 W=1 C=2
}

# --- documentation ---

# kernel_doc DIR FILE: what kernel-doc finds, without line numbers
kernel_doc() {
	env -C "$1" PYTHONDONTWRITEBYTECODE=1 python3 scripts/kernel-doc -none -Wall "$2" 2>&1 |
		sed -E 's/^([^ ]+ [^ ]+:)[0-9]+/\1/' | LC_ALL=C sort || true
}

# Nothing at all in our files, nothing new in those that our patches touch.
kernel_doc_is_clean() {
	local file=$1 found

	if [[ -f $base_dir/$file ]]; then
		found=$(LC_ALL=C comm -23 <(kernel_doc "$tree" "$file") <(kernel_doc "$base_dir" "$file"))
	else
		found=$(kernel_doc "$tree" "$file")
	fi
	[[ ! $found ]] || {
		echo "$found"
		return 1
	}
}

check_kernel_doc() {
	local file
	local -a files

	sync_tree linux >&2
	make_tree linux >&2
	mapfile -t files < <({
		linux_files
		series linux | xargs -r -d '\n' cat | patch_targets -
	} | grep -E '^(drivers|include)/.*\.[ch]$' | LC_ALL=C sort -u)
	tap_plan ${#files[@]}
	for file in "${files[@]}"; do
		tap_run "$file" kernel_doc_is_clean "$file"
	done
}

# --- parts with a Makefile of their own ---

check_units() {
	sync_tree linux >&2
	make --no-print-directory -s -C "$repo/tools/testing/iommu_inval" KSRC="$tree" OUT="$out/units" -j"$jobs" check
}

check_unit_faults() {
	sync_tree linux >&2
	make --no-print-directory -s -C "$repo/tools/testing/iommu_inval" KSRC="$tree" OUT="$out/units" -j"$jobs" check-faults
}

check_spec() {
	local rc=0

	make --no-print-directory -s -C "$repo/spec" OUT="$out/spec" lint || rc=$?
	make --no-print-directory -s -C "$repo/spec" OUT="$out/spec" clauses | sed 's/^/# /'
	return "$rc"
}

check_spec_html() {
	tap_plan 1
	tap_run "the specification renders" make --no-print-directory -s -C "$repo/spec" OUT="$out/spec" html
}

check_spec_selftest() {
	make --no-print-directory -s -C "$repo/spec" OUT="$out/spec" selftest
}

check_lab() {
	"$lab/selftest"
}

# --- one program for every vendor ---

neutral_words='vt-?d|dmar|intel|smmu|\bamd\b|x86|\barm|aarch64|\basid\b|hw_info'

# Nothing here may tell one vendor from another: not in code, not in words.
neutral_files=(tools/vhost-iommu/demo.c tools/vhost-iommu/bench.c tools/vhost-iommu/flood.{c,h} tools/vhost-iommu/flood_guest.c
	drivers/vhost/iommu.c
	tools/testing/selftests/vhost_iommu/lib/{vmm,vq,vhost_iommu,record}.{c,h})

# has_no_vendor FILE
has_no_vendor() {
	! grep -n -i -E "$neutral_words" "$1"
}

# The selftest names table formats, which its variants are, and no IOMMU.
has_no_vendor_but_formats() {
	sed -E 's/VIRTIO_IOMMU_TABLE_[A-Z0-9_]+|FIXTURE_VARIANT_ADD\(dma, [a-z0-9_]+\)//' "$1" | {
		! grep -n -i -E "$neutral_words"
	}
}

check_neutral() {
	local file

	scratch dir
	tap_plan $((${#neutral_files[@]} + 2))
	for file in "${neutral_files[@]}"; do
		tap_run "no vendor in $file" has_no_vendor "$repo/$file"
	done
	tap_run "no vendor in the selftest with DMA" \
		has_no_vendor_but_formats "$repo/tools/testing/selftests/vhost_iommu/vhost_iommu_dma.c"
	# the check itself
	{
		cat "$repo/tools/vhost-iommu/demo.c"
		echo 'if (is_smmuv3(dev)) return;'
	} >"$dir/branch.c"
	tap_run "a vendor branch is found" finds_vendor "$dir/branch.c"
}

finds_vendor() {
	! has_no_vendor "$1" >/dev/null
}
