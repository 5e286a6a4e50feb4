# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Work trees: pristine sources, with our files laid over them and our patches applied, and what is
# built from them.
#
# A work tree starts as hard links to the pristine tree. "Our" files in it (those of the repository,
# and those that patches touch) are written by rsync --checksum, so a file whose content stays keeps
# its time stamp and is not built again. The list of our files is kept: what leaves the
# repository leaves the tree.

work_name=${LAB_WORK:-main}

# select_tree linux|qemu: sets tree, tree_base, tree_lock, tree_id
select_tree() {
	local what=$1 src

	[[ $work_name =~ ^[A-Za-z0-9_.-]+$ ]] || die "'$work_name' cannot be the name of a work tree"
	[[ $cache != *[[:space:]:]* ]] || die "the kernel cannot be built below a path with spaces or colons: $cache" \
		"Put the cache elsewhere: VHOST_IOMMU_CACHE=..."
	if [[ $what == linux ]]; then
		src=${LINUX_SRC:-}
	else
		src=${QEMU_SRC:-}
	fi
	tree_base=
	if [[ -z $src ]]; then
		base_id=$what-$(pin_version "$what" | tr -c 'A-Za-z0-9.\n' '_')
	elif [[ -d $src ]]; then
		tree_base=$(cd "$src" && pwd -P)
		base_id=$what-dir-$(sha256sum <<<"$tree_base" | cut -c1-12)
	elif [[ -f $src ]]; then
		tree_base=$(realpath "$src")
		base_id=$what-tar-$(sha256sum <"$tree_base" | cut -c1-12)
	else
		die "${what^^}_SRC=$src is neither a directory nor a tarball"
	fi
	tree_id=$base_id
	tree=$cache/work/$work_name/$tree_id
	tree_lock=$cache/work/$work_name/$what.lock
}

# The Linux tree of this name has nothing of ours.
stock=stock

linux_files() {
	[[ $work_name != "$stock" ]] || return 0
	(cd "$repo" && find drivers include tools/testing -type f) | not_ours
}

qemu_files() {
	(cd "$repo/qemu" && find . -type f -printf '%P\n') | not_ours
}

# left-overs of builds in place and of editors
not_ours() {
	grep -v -E '(~|\.(o|a|d|ko|cmd|mod|orig|rej|swp)|/modules\.order|/Module\.symvers|(^|/)\.gitignore)$' |
		grep -v '^tools/testing/faults/' | LC_ALL=C sort || true
}

wire_header=include/uapi/linux/virtio_iommu_stage1.h
qemu_headers=include/standard-headers/linux
# QEMU has headers of ioctls elsewhere, as they are.
ioctl_headers=(include/uapi/linux/{iommufd_inval,vhost_iommu}.h)
qemu_ioctl_headers=linux-headers/linux

# import_header BASE TREE: our headers, as QEMU's own script (that of BASE) imports headers of Linux
import_header() (
	# shellcheck disable=SC2034 # used by cp_portable
	arch=
	eval "$(sed -n '/^cp_portable()/,/^}/p' "$1/scripts/update-linux-headers.sh")"
	mkdir -p "$2/$qemu_headers"
	cp_portable "$repo/$wire_header" "$2/$qemu_headers"
	mkdir -p "$2/$qemu_ioctl_headers"
	cp "${ioctl_headers[@]/#/$repo/}" "$2/$qemu_ioctl_headers/"
)

# What QEMU shares with Linux, lines "HERE THERE": the attach library, the translators that it uses, and what
# these take from the kernel's own headers
qemu_imports() {
	local there=hw/virtio/iommu-attach file

	for file in attach.c attach.h attach_inval.c attach_inval.h attach_smmuv3.c attach_vtd.c util.h; do
		echo "tools/testing/selftests/vhost_iommu/lib/$file $there/$file"
	done
	echo "drivers/iommu/intel/inval.c $there/inval_vtd.c"
	echo "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-inval.c $there/inval_smmuv3.c"
	for file in asm/byteorder.h linux/bitops.h linux/types.h; do
		echo "tools/testing/iommu_inval/shim/$file $there/include/$file"
	done
	echo "include/linux/iommu_inval.h $there/include/linux/iommu_inval.h"
	echo "include/uapi/linux/iommufd_inval.h $there/include/uapi/linux/iommufd_inval.h"
}

# import_shared TREE
import_shared() {
	local here there

	while read -r here there; do
		mkdir -p "$1/$(dirname "$there")"
		cp "$repo/$here" "$1/$there"
	done < <(qemu_imports)
}

series() {
	[[ $1 != linux || $work_name != "$stock" ]] || return 0
	find "$repo/$1-patches" -maxdepth 1 -name '*.patch' 2>/dev/null | LC_ALL=C sort
	find "$cache/work/$work_name/extra-$1" -maxdepth 1 -name '*.patch' 2>/dev/null | LC_ALL=C sort
}

patch_targets() {
	sed -n -E 's;^\+\+\+ b/([^\t]*).*;\1;p; s;^--- a/([^\t]*).*;\1;p' "$@" | LC_ALL=C sort -u
}

# Everything that decides what a tree contains, as one number. "tests" leaves nothing out; "build"
# leaves out tools/testing, which no kernel is built from.
tree_hash() {
	local what=$1 for=$2

	{
		echo "$tree_id"
		series "$what" | xargs -r -d '\n' sha256sum | sed "s; .*/; ;"
		if [[ $what == linux ]]; then
			cd "$repo" && linux_files | if [[ $for == build ]]; then
				grep -v ^tools/testing/ || true
			else
				cat
			fi | xargs -r -d '\n' sha256sum
		else
			cd "$repo/qemu" && qemu_files | xargs -r -d '\n' sha256sum
			sha256sum "$lab"/qemu-*.mak "$repo/$wire_header" "${ioctl_headers[@]/#/$repo/}" | sed "s; .*/; ;"
			qemu_imports
			cd "$repo" && qemu_imports | cut -d' ' -f1 | xargs -r sha256sum
		fi
	} | sha256sum | cut -d' ' -f1
}

# Copies the base tree, hard links where nothing can change it.
make_tree() {
	local what=$1 from tmp

	if [[ -z $tree_base ]]; then
		unpack "$what"
		from=$pristine/$base_id
	elif [[ -f $tree_base ]]; then
		from=$pristine/$base_id
		if [[ ! -d $from ]]; then
			step "unpacking $tree_base"
			mkdir -p "$from.new"
			tarball_top "$tree_base" >/dev/null
			tar -C "$from.new" --strip-components=1 -xf "$tree_base" || die "$tree_base could not be unpacked"
			mv "$from.new" "$from"
		fi
	else
		from=$tree_base
	fi
	if [[ $what == linux && ! -f $from/include/uapi/linux/iommufd.h ]]; then
		die "$from is no Linux tree with iommufd (include/uapi/linux/iommufd.h is missing)"
	elif [[ $what == qemu && ! -f $from/hw/i386/intel_iommu.c ]]; then
		die "$from is no QEMU tree (hw/i386/intel_iommu.c is missing)"
	fi
	base_dir=$from
	if [[ -d $tree && ! -d $tree_base ]]; then
		return
	fi
	if [[ ! -d $tree_base ]]; then
		tmp=$tree.new
		rm -rf "$tmp"
		mkdir -p "$(dirname "$tree")"
		cp -al "$from" "$tmp"
		mv "$tmp" "$tree"
		return
	fi
	# A directory of the user's: take its state as it is now, without what a build has left in it.
	step "copying $from"
	mkdir -p "$tree"
	touch "$tree/.lab-files"
	sed 's;^;/;' "$tree/.lab-files" | rsync -rlpc --delete --exclude-from=- --exclude=/.git --exclude='/build-*' \
		--exclude='/build' --exclude='/.lab-*' --exclude='*.o' --exclude='*.ko' --exclude='*.cmd' --exclude='.*.d' \
		--exclude=/.config --exclude=/include/config --exclude=/include/generated --exclude='/arch/*/include/generated' \
		"$from/" "$tree/"
	if [[ $what == qemu && ! -d $from/roms/edk2 ]]; then
		touch "$tree/.lab-debian"
	fi
}

# sync_tree linux|qemu: the tree holds the base, our files and our patches, and nobody changes it
# before release.
sync_tree() {
	local what=$1 hash build_hash new file patch old source root arch_dir

	release
	select_tree "$what"
	lock "$tree_lock.sync" "the $what tree '$work_name'"
	hash=$(tree_hash "$what" tests)
	build_hash=$(tree_hash "$what" build)
	if [[ -f $tree/.lab-hash && ! -d $tree_base && $(<"$tree/.lab-hash") == "$hash" ]]; then
		lock "$tree_lock" "the $what tree '$work_name'" -s
		unlock "$tree_lock.sync"
		return 0
	fi
	if [[ -f $tree/.lab-build-hash && ! -d $tree_base && $(<"$tree/.lab-build-hash") == "$build_hash" ]]; then
		lock "$tree_lock" "the $what tree '$work_name'" -s
	else
		lock "$tree_lock" "the $what tree '$work_name'"
		rm -f "$tree/.lab-build-hash"
	fi
	make_tree "$what"
	rm -f "$tree/.lab-hash"

	scratch new
	if [[ $what == linux ]]; then
		root=$repo
		linux_files >"$new.list"
	else
		root=$repo/qemu
		qemu_files >"$new.list"
	fi
	while read -r file; do
		if [[ -e $base_dir/$file ]]; then
			die "$file exists in the $what tree already" \
				"A change to an existing file belongs into $what-patches/."
		fi
	done <"$new.list"
	rsync -rl --files-from="$new.list" "$root/" "$new/"
	if [[ $what == qemu ]]; then
		for file in "$lab"/qemu-*.mak; do
			arch_dir=${file##*/qemu-}
			arch_dir=$new/configs/devices/${arch_dir%.mak}-softmmu
			mkdir -p "$arch_dir"
			cp "$file" "$arch_dir/lab.mak"
		done
		import_header "$base_dir" "$new"
		import_shared "$new"
	fi

	mapfile -t patches < <(series "$what")
	if ((${#patches[@]})); then
		while read -r file; do
			if [[ ! -e $new/$file && -f $base_dir/$file ]]; then
				mkdir -p "$new/$(dirname "$file")"
				cp "$base_dir/$file" "$new/$file"
			fi
		done < <(patch_targets "${patches[@]}")
		for patch in "${patches[@]}"; do
			strictly_apply "$new" "$patch" "$tree_id" || apply_refused "$what"
		done
	fi
	(cd "$new" && find . -type f -printf '%P\n' | LC_ALL=C sort) >"$new.files"

	# what was ours and is no longer: back to the base, or gone
	old=$tree/.lab-files
	touch "$old"
	while read -r file; do
		if [[ -f $base_dir/$file ]]; then
			cp --remove-destination --no-preserve=timestamps "$base_dir/$file" "$tree/$file"
		else
			rm -f "$tree/$file"
			source=$(dirname "$file")
			(cd "$tree" && rmdir -p --ignore-fail-on-non-empty "$source" 2>/dev/null) || true
		fi
	done < <(LC_ALL=C comm -23 "$old" "$new.files")
	LC_ALL=C sort -u "$old" "$new.files" -o "$old.new" && mv "$old.new" "$old"
	rsync -rlc --perms --checksum "$new/" "$tree/"
	mv "$new.files" "$tree/.lab-files"
	rm -f "$new.list"
	echo "$build_hash" >"$tree/.lab-build-hash"
	echo "$hash" >"$tree/.lab-hash"
	lock "$tree_lock" "the $what tree '$work_name'" -s
	unlock "$tree_lock.sync"
	note "$what tree: $tree ($(wc -l <"$tree/.lab-files") files of ours, ${#patches[@]} patches)"
}

apply_refused() {
	local what=$1

	if [[ $tree_base ]]; then
		die "the series was made for $what $(pin_version "$what")" \
			"Rebase it: tools/lab/lab edit $what, with ${what^^}_SRC set as now, then tools/lab/lab export $what."
	fi
	die "the series and tools/lab/sources do not fit together" \
		"See 'tools/lab/lab help' (edit, export) for how to bring patches up to date."
}

# --- Linux ---

# piggy.S has the compressed kernel in it, by .incbin, which ccache does not look into: it would hand out
# the kernel of before whenever the new one has the same length. It refuses this option.
not_cached='AFLAGS_piggy.o=-Xpreprocessor -DNOT_CACHED'

kmake() {
	make -C "$tree" -j"$jobs" KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=lab \
		KBUILD_BUILD_VERSION=1 LOCALVERSION= "$not_cached" "$@"
}

# merged_config FILE...: one value per symbol, the last one given
merged_config() {
	awk -F= '/^CONFIG_/ { if (!($1 in value)) order[++n] = $1; value[$1] = $0 }
		END { for (i = 1; i <= n; i++) print value[order[i]] }' "$@"
}

# without_ours: a configuration without the symbols that our patches add to Kconfig
without_ours() {
	local ours

	ours=$(sed -n -E 's/^\+(menu)?config ([A-Z0-9_]+)$/\2/p' "$repo"/linux-patches/*.patch | paste -s -d '|')
	grep -v -x -E "CONFIG_($ours)=.*"
}

# check_config WANTED RESULT [TREE]: every line of WANTED is in RESULT
check_config() {
	local wanted=$1 result=$2 src=${3:-} line symbol bad=0 hint

	while IFS= read -r line; do
		[[ $line == CONFIG_*=* ]] || continue
		symbol=${line%%=*}
		if [[ $line == *=n ]]; then
			! grep -q "^$symbol=" "$result" || {
				echo "lab: $line was asked for, but the kernel has $(grep "^$symbol=" "$result")" >&2
				bad=1
			}
		elif ! grep -q -x -F -- "$line" "$result"; then
			hint="it has $(grep -E "^(# )?$symbol[= ]" "$result" || echo 'nothing')"
			if [[ $src ]] && ! grep -r -q -s -E --include='Kconfig*' "^[[:space:]]*(menu)?config ${symbol#CONFIG_}\$" \
				"$src/drivers" "$src/kernel" "$src/lib" "$src/arch" "$src/mm" "$src/fs" "$src/init" "$src/net"; then
				if [[ $symbol == CONFIG_VHOST_IOMMU && -z $(series linux) ]]; then
					warn "$line: no Kconfig knows it, as linux-patches/ is empty"
					continue
				fi
				hint="no Kconfig file knows it: is a patch missing?"
			fi
			echo "lab: $line was asked for: $hint" >&2
			bad=1
		fi
	done <"$wanted"
	return "$bad"
}

# needed_modules BUILD NAME...: the modules of BUILD that have these names, and those that they need,
# in the order of .lab-modules. What is built in is no module.
needed_modules() {
	local build=$1
	shift

	tac "$build/.lab-modules" | awk -v names="$*" -v depends="$build/.lab-depends" '
		function plain(name) { gsub(/-/, "_", name); return name }
		BEGIN {
			n = split(names, list)
			for (i = 1; i <= n; i++)
				wanted[plain(list[i])] = 1
			while ((getline line < depends) > 0) {
				split(line, pair)
				needs[pair[2]] = needs[pair[2]] " " pair[1]
			}
		}
		{
			name = $0
			gsub(/.*\/|\.ko.*/, "", name)
			name = plain(name)
			if (!(name in wanted))
				next
			print
			n = split(needs[name], list)
			for (i = 1; i <= n; i++)
				wanted[list[i]] = 1
		}' | tac
}

# has_module BUILD NAME
has_module() {
	[[ $(needed_modules "$1" "$2") ]]
}

# Modules in an order in which each finds what it needs, one path a line, relative to BUILD; and in
# .lab-depends, lines "NEEDED BY".
module_order() {
	local build=$1 file name deps dep

	while read -r file; do
		file=${file%.o}
		file=${file%.ko}
		name=$(basename "$file" | tr - _)
		echo "$name $name"
		echo "$name $file.ko" >&3
		deps=$(sed -n 's/^MODULE_INFO(depends, "\(.*\)");/\1/p' "$build/$file.mod.c")
		for dep in ${deps//,/ }; do
			echo "${dep//-/_} $name"
		done
	done <"$build/modules.order" 3>"$build/.lab-names" | tee "$build/.lab-depends" | tsort | while read -r name; do
		awk -v name="$name" '$1 == name { print $2 }' "$build/.lab-names"
	done
}

# configure_kernel BUILD WANTED LOG [MAKE_VARIABLE]...: only if there is a reason to
configure_kernel() {
	local build=$1 wanted=$2 log=$3 hash
	shift 3

	hash=$( (echo "$wanted"; grep -E '(^|/)Kconfig' "$tree/.lab-files" | sed "s;^;$tree/;" | xargs -r -d '\n' cat
		echo "$tree_id") | sha256sum | cut -d' ' -f1)
	if [[ ! -d $tree_base && -f $build/.config && -f $build/.lab-config &&
		$(<"$build/.lab-config") == "$hash" ]]; then
		return 0
	fi
	rm -f "$build/.lab-config"
	echo "$wanted" >"$build/lab.config"
	long "configuring" "$log" 0 . kmake "$@" O="$(basename "$build")" \
		KCONFIG_ALLCONFIG="$build/lab.config" allnoconfig || return 1
	check_config "$build/lab.config" "$build/.config" "$tree" || return 1
	echo "$hash" >"$build/.lab-config"
}

# build_linux KIND: the tree is up to date and so is its kernel of that kind, in $kernel_build, and
# both stay so until release. Sets what select_kind sets.
build_linux() {
	local kind=$1 build log wanted hash expected

	select_kind "$kind"
	adopt_build "$kind" || return 1
	sync_tree linux
	lock "$tree_lock.$kind" "the $kind kernel '$work_name'"
	build=$tree/build-$kind
	wanted=$(merged_config "${kind_config[@]}")
	[[ $work_name != "$stock" ]] || wanted=$(without_ours <<<"$wanted")
	hash=$( (cat "$tree/.lab-build-hash"; echo "$wanted" "$not_cached"; "${arch_cross}gcc" -dumpfullversion) |
		sha256sum | cut -d' ' -f1)
	kernel_build=$build
	if [[ -f $build/.lab-stamp && $(<"$build/.lab-stamp") == "$hash" ]]; then
		step "linux: the $kind kernel is up to date"
		return 0
	fi
	step "linux: building the $kind kernel"
	log=$cache/logs/$work_name-linux-$kind.log
	mkdir -p "$build"
	rm -f "$build/.lab-stamp"
	expected=0
	if [[ ! -f $build/vmlinux ]]; then
		expected=1350
		[[ ! -f $cache/logs/objects-$kind ]] || expected=$(<"$cache/logs/objects-$kind")
	fi
	configure_kernel "$build" "$wanted" "$log" "${arch_make[@]}" ||
		die "the $kind kernel cannot be configured as tools/lab/kernel-*.config asks" \
			"A dependency may be missing, or have a new name in this tree."
	long "compiling" "$log" "$expected" '^  (CC|AS|AR|LD|HOSTCC|HOSTLD)' \
		kmake "${arch_make[@]}" O="build-$kind" "${arch_image##*/}" modules || return 1
	if ((expected)); then
		grep -c -E '^  (CC|AS|AR|LD|HOSTCC|HOSTLD)' "$log" >"$cache/logs/objects-$kind" || true
	fi
	module_order "$build" >"$build/.lab-modules"
	echo "$hash" >"$build/.lab-stamp"
}

# adopt_build KIND: a variant of a tree starts with what the tree that it comes from has built.
adopt_build() {
	local kind=$1 name=$work_name origin=$cache/work/$work_name/origin from file new
	local -a ours=()

	[[ -f $origin ]] || return 0
	select_tree linux
	[[ -d $tree && ! -d $tree/build-$kind ]] || return 0
	work_name=$(<"$origin")
	if ! build_linux "$kind"; then
		work_name=$name
		return 1
	fi
	from=$tree
	work_name=$name
	select_tree linux
	step "copying the built $kind kernel to '$name'"
	new=$tree/build-$kind.new.$$
	scratch_dirs+=("$new")
	cp -a --reflink=auto "$from/build-$kind" "$new"
	# What the variant has of its own may be older than the copied objects.
	while read -r file; do
		[[ ! -f $tree/$file ]] || cmp -s "$from/$file" "$tree/$file" || ours+=("$tree/$file")
	done < <(LC_ALL=C sort -u "$from/.lab-files" "$tree/.lab-files")
	release
	lock "$tree_lock" "the linux tree '$work_name'"
	if [[ -d $tree/build-$kind ]]; then
		rm -rf "$new"
		return 0
	fi
	((${#ours[@]} == 0)) || touch "${ours[@]}"
	mv "$new" "$tree/build-$kind"
	sync_tree linux
	# objtool's build has absolute paths in it. It is made again here, and then as old as it was,
	# or every object would be built again for it.
	if [[ -x $from/build-$kind/tools/objtool/objtool ]]; then
		long "building objtool" "$cache/logs/$name-objtool.log" 0 . \
			kmake "${arch_make[@]}" O="build-$kind" prepare || return 1
		find "$tree/build-$kind/tools" -type f -exec touch -r "$from/build-$kind/tools/objtool/objtool" {} +
	fi
}

# build_headers ARCH: the kernel's headers for userspace, of our tree: sets headers
build_headers() {
	local hash

	select_arch "$1"
	sync_tree linux
	headers=$tree/build-headers$arch_suffix
	lock "$tree_lock.headers$arch_suffix" "the kernel headers '$work_name'"
	hash=$(<"$tree/.lab-build-hash")
	[[ ! -f $headers/.lab-stamp || $(<"$headers/.lab-stamp") != "$hash" ]] || return 0
	mkdir -p "$headers"
	long "installing the kernel's headers" "$cache/logs/$work_name-headers$arch_suffix.log" 0 . \
		kmake "${arch_make[@]}" O="build-headers$arch_suffix" headers || return 1
	echo "$hash" >"$headers/.lab-stamp"
}

# --- QEMU ---

qemu_options=(--python=/usr/bin/python3 --disable-download --target-list=x86_64-softmmu,aarch64-softmmu
	--without-default-features
	--enable-system --enable-tcg --enable-kvm --enable-fdt=system --enable-vhost-kernel --enable-vhost-net
	--disable-werror --disable-debug-info --disable-docs --disable-install-blobs --without-default-devices
	--with-devices-x86_64=lab --with-devices-aarch64=lab --firmwarepath=/usr/share/seabios:/usr/share/qemu)
# QEMU's own that are about what we change
qtests=(intel-iommu-test qos-test)

qemu_qtests() {
	local t

	for t in "${qtests[@]}"; do
		echo "$t"
	done
	# tests that the repository adds
	(cd "$repo/qemu" && find tests/qtest -name '*-test.c' -printf '%f\n' 2>/dev/null | sed 's/\.c$//') || true
}

# configure_qemu BUILD LOG OPTION...: only if there is a reason to
configure_qemu() {
	local build=$1 log=$2
	shift 2

	[[ ! -f $build/.lab-configured || $(<"$build/.lab-configured") != "$*" ]] || return 0
	rm -rf "$build"
	mkdir -p "$build"
	long "configuring" "$log" 0 . env -C "$build" CC=gcc ../configure "$@" || return 1
	echo "$*" >"$build/.lab-configured"
}

# build_qemu [tests]: QEMU for each host (and its tests) is up to date in $qemu_build, until release
build_qemu() {
	local tests=${1:-} build log hash stamp=.lab-stamp

	unpack meson
	export PYTHONPATH=$pristine/$base_id/usr/lib/python3/dist-packages
	sync_tree qemu
	build=$tree/build
	qemu_build=$build
	hash=$( (cat "$tree/.lab-build-hash"; echo "${qemu_options[@]}" "${qtests[@]}"; gcc -dumpfullversion) | sha256sum |
		cut -d' ' -f1)
	[[ ! $tests ]] || stamp=.lab-stamp-tests
	# who finds it built shares it: qtests run in the build directory
	lock "$tree_lock.build" "QEMU '$work_name'" -s
	if qemu_is_built; then
		step "qemu: up to date"
		return 0
	fi
	step "qemu: building QEMU${tests:+ and its tests}"
	log=$cache/logs/$work_name-qemu.log
	until qemu_is_built; do
		lock "$tree_lock.build" "QEMU '$work_name'"
		qemu_is_built || compile_qemu || return 1
		# for a moment it is nobody's
		lock "$tree_lock.build" "QEMU '$work_name'" -s
	done
}

# For build_qemu, with its variables
qemu_is_built() {
	[[ -f $build/$stamp && $(<"$build/$stamp") == "$hash" ]]
}

compile_qemu() {
	local t
	local -a targets=()

	# also that of the other targets: ninja removes what this tree does not know
	rm -f "$build/.lab-stamp" "$build/.lab-stamp-tests"
	configure_qemu "$build" "$log" "${qemu_options[@]}" || return 1
	for t in "${hosts[@]}"; do
		targets+=("$(select_host "$t" && echo "$host_qemu")")
	done
	if [[ $tests ]]; then
		while read -r t; do
			targets+=("tests/qtest/$t")
		done < <(qemu_qtests)
	fi
	long "compiling" "$log" 0 ninja ninja -C "$build" -j"$jobs" "${targets[@]}" || return 1
	echo "$hash" >"$build/.lab-stamp"
	echo "$hash" >"$build/$stamp"
}

# build_qemu_static ARCH: a QEMU for guests in a host is up to date, the program $qemu_static, until release. The
# host's VM has no libraries, and KVM.
build_qemu_static() {
	local build log hash sysroot target option options=(--static --disable-pie --disable-tcg)

	select_arch "$1"
	target=$([[ $arch == x86 ]] && echo x86_64 || echo aarch64)
	for option in "${qemu_options[@]}"; do
		[[ $option =~ ^(--target-list=.*|--enable-tcg|--firmwarepath=.*)$ ]] || options+=("$option")
	done
	options+=("--target-list=$target-softmmu")
	if [[ $arch_cross ]]; then
		unpack "sysroot-$arch"
		sysroot=$pristine/$base_id
		# -B: where meson looks for libraries that pkg-config does not know
		options+=("--cross-prefix=$arch_cross"
			"--cc=${arch_cross}gcc -B$sysroot/usr/lib/${arch_cross%-}/ -isystem $sysroot/usr/include")
	fi
	unpack meson
	export PYTHONPATH=$pristine/$base_id/usr/lib/python3/dist-packages
	sync_tree qemu
	lock "$tree_lock.build-static$arch_suffix" "the static QEMU '$work_name'"
	build=$tree/build-static$arch_suffix
	qemu_static=$build/qemu-static
	hash=$( (cat "$tree/.lab-build-hash"; echo "${options[@]}"; "${arch_cross}gcc" -dumpfullversion) | sha256sum |
		cut -d' ' -f1)
	if [[ -f $build/.lab-stamp && $(<"$build/.lab-stamp") == "$hash" ]]; then
		step "qemu: the static one for $arch is up to date"
		return 0
	fi
	step "qemu: building the static one for $arch"
	log=$cache/logs/$work_name-qemu-static$arch_suffix.log
	rm -f "$build/.lab-stamp"
	[[ ! $arch_cross ]] || export PKG_CONFIG=$sysroot/pkg-config
	configure_qemu "$build" "$log" "${options[@]}" || return 1
	unset PKG_CONFIG
	long "compiling" "$log" 0 ninja ninja -C "$build" -j"$jobs" "qemu-system-$target" || return 1
	"${arch_cross}strip" -o "$qemu_static" "$build/qemu-system-$target" || return 1
	echo "$hash" >"$build/.lab-stamp"
}
