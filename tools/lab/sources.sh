# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Downloads, pinned by tools/lab/sources, and the pristine trees unpacked from them.

downloads=$cache/downloads
pristine=$cache/pristine

# pins WHAT: the lines of tools/lab/sources for WHAT
pins() {
	awk -v what="$1" '$1 == what { print $2, $3, $4, $5, $6 }' "$lab/sources"
}

pin_version() {
	pins "$1" | awk 'NR == 1 { print $3 }'
}

checksum_ok() {
	[[ -f $1 ]] && echo "$2  $1" | sha256sum --check --status
}

# The archive that the machine itself uses for Debian, whatever the format of its sources list.
debian_uri() {
	local uri suites

	if [[ ${VHOST_IOMMU_DEBIAN_URI:-} ]]; then
		echo "$VHOST_IOMMU_DEBIAN_URI"
		return
	fi
	suites=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	suites="${suites:+$suites|}bookworm|trixie|forky|sid|stable|testing|unstable"
	uri=$(apt-get --print-uris update 2>/dev/null |
		sed -n -E "s;^'(.*)/dists/($suites)/(In)?Release'.*;\\1;p" | head -n 1)
	[[ $uri ]] || die "this machine's apt knows no Debian archive" \
		"Name one: VHOST_IOMMU_DEBIAN_URI=..., or use trees of your own: LINUX_SRC=... QEMU_SRC=..."
	echo "$uri"
}

debian_keyring() {
	local file

	for file in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		if [[ -f $file ]]; then
			echo "$file"
			return
		fi
	done
	die "the keys of the Debian archive are missing" "Install the package debian-archive-keyring."
}

# fetch WHAT: all files of WHAT are in $downloads, with the right checksums
fetch() {
	local what=$1 suite package version sum file missing=() line uri key apt deb src

	while read -r suite package version sum file; do
		if ! checksum_ok "$downloads/$file" "$sum"; then
			[[ ! -f $downloads/$file ]] || warn "$downloads/$file has another checksum than tools/lab/sources: downloading it again"
			missing+=("$suite $package $version $sum $file")
		fi
	done < <(pins "$what")
	((${#missing[@]})) || return 0

	step "downloading $what $(pin_version "$what")"
	mkdir -p "$downloads"
	command -v apt-get >/dev/null ||
		die "there is no apt-get to download the sources with" "Use trees of your own: LINUX_SRC=... QEMU_SRC=..."
	uri=$(debian_uri)
	key=$(debian_keyring)
	scratch apt
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/new"
	for line in "${missing[@]}"; do
		read -r suite package version sum file <<<"$line"
		if [[ $suite == */source ]]; then
			echo "deb-src [signed-by=$key] $uri ${suite%/source} main"
		elif [[ $package == *:* ]]; then
			echo "deb [arch=${package#*:} signed-by=$key] $uri $suite main"
		else
			echo "deb [arch=$(dpkg --print-architecture) signed-by=$key] $uri $suite main"
		fi
	done | sort -u >"$apt/sources.list"
	# A state of our own: nothing in the system's apt changes.
	local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none
		-o Acquire::Retries=3 -o "APT::Sandbox::User=$(id -un)" -q
		-o "APT::Architectures::=$(dpkg --print-architecture)" -o APT::Architectures::=arm64)
	long "reading the archive's index" "$cache/logs/fetch-$what-index.log" 0 '^(Get|Hit):' \
		apt-get "${options[@]}" update ||
		die "the archive's index could not be read" "Check the network, or put these files into $downloads:" \
			"${missing[@]##* }"
	for line in "${missing[@]}"; do
		read -r suite package version sum file <<<"$line"
		[[ ! -f $apt/new/$file ]] || continue
		if [[ $suite == */source ]]; then
			src=(source --download-only)
		else
			src=(download)
		fi
		long "$file" "$cache/logs/fetch-$package.log" 0 '^Get:' \
			env -C "$apt/new" apt-get "${options[@]}" "${src[@]}" "$package=$version" ||
			die "$package $version is not in suite ${suite%/source} of this machine's archive" \
				"The archive may have moved on to a newer version. Put $file" \
				"(sha256 $sum) into $downloads," \
				"or pin the newer version in tools/lab/sources, or use a tree: LINUX_SRC=... QEMU_SRC=..."
	done
	for line in "${missing[@]}"; do
		read -r suite package version sum file <<<"$line"
		# apt drops the epoch, or writes it as %3a
		deb=$(find "$apt/new" -name "$file" | head -n 1)
		if ! checksum_ok "${deb:-/nonexistent}" "$sum"; then
			die "$file was downloaded, but its checksum is not the one in tools/lab/sources" \
				"wanted $sum" "got    $(sha256sum "${deb:-/dev/null}" | cut -d' ' -f1)"
		fi
		mv "$deb" "$downloads/$file"
	done
}

# strictly_apply DIR PATCH SERIES_NAME: no fuzz, and an error that says what is needed
strictly_apply() {
	local dir=$1 patch=$2 log base=$3
	local output

	log=$(GIT_CEILING_DIRECTORIES=$(dirname "$dir") git -C "$dir" apply --whitespace=nowarn -p1 "$patch" 2>&1) && return 0
	output=$(sed 's/^error: /     /' <<<"$log")
	{
		echo "lab: $(basename "$patch") does not apply to $base:"
		echo "$output"
	} >&2
	return 1
}

tarball_top() {
	local top

	# not a pipe into head: tar would die of SIGPIPE
	top=$(tar -tf "$1" 2>/dev/null | awk -F/ '{ if ($1 == "." ) print $2; else print $1 }' | sort -u | sed '/^$/d')
	[[ $top && $(wc -l <<<"$top") == 1 ]] || die "$1 should hold one directory, the source tree"
	echo "$top"
}

# unpack WHAT: $pristine/NAME exists; the name is left in the variable base_id
unpack() {
	local what=$1 dir tmp file list

	base_id=$what-$(pin_version "$what" | tr -c 'A-Za-z0-9.\n' '_')
	dir=$pristine/$base_id
	[[ ! -d $dir ]] || return 0
	lock "$cache/fetch-$what.lock" "the sources of $what"
	if [[ -d $dir ]]; then
		unlock "$cache/fetch-$what.lock"
		return 0
	fi
	fetch "$what"
	step "unpacking $base_id"
	mkdir -p "$pristine"
	tmp=$pristine/.new.$what.$$
	rm -rf "$tmp" && mkdir "$tmp"
	scratch_dirs+=("$tmp")
	case $what in
	linux)
		file=$downloads/$(pins linux | awk '{ print $5 }')
		list="$tmp/deb"
		mkdir "$list"
		long "unpacking the package" "$cache/logs/unpack-linux.log" 0 . dpkg-deb -x "$file" "$list" ||
			die "$file is damaged"
		long "unpacking the kernel" "$cache/logs/unpack-linux.log" 0 . \
			tar -C "$tmp" -xf "$list"/usr/src/linux-source-*.tar.xz || die "$file is damaged"
		rm -rf "$list"
		mv "$tmp"/linux-source-* "$tmp/tree"
		;;
	qemu)
		mkdir "$tmp/tree"
		long "unpacking QEMU" "$cache/logs/unpack-qemu.log" 0 . \
			tar -C "$tmp/tree" --strip-components=1 -xf "$downloads/$(pins qemu | awk '/orig/ { print $5 }')" ||
			die "the QEMU sources are damaged"
		debian_patches "$tmp/tree"
		;;
	debian-*)
		mkdir "$tmp/tree" "$tmp/deb"
		while read -r _ _ _ _ file; do
			dpkg-deb -x "$downloads/$file" "$tmp/deb" || die "$downloads/$file is damaged"
		done < <(pins "$what")
		lay_debian_kernel "$tmp/deb" "$tmp/tree"
		;;
	sysroot-*)
		mkdir "$tmp/tree"
		while read -r _ _ _ _ file; do
			dpkg-deb -x "$downloads/$file" "$tmp/tree" || die "$downloads/$file is damaged"
		done < <(pins "$what")
		pkg_config_for "$tmp/tree"
		;;
	meson)
		mkdir "$tmp/tree"
		while read -r _ _ _ _ file; do
			dpkg-deb -x "$downloads/$file" "$tmp/tree"
		done < <(pins meson)
		;;
	esac
	mv "$tmp/tree" "$dir"
	rm -rf "$tmp"
	unlock "$cache/fetch-$what.lock"
}

# The package's tarball leaves out firmware sources that configure looks for; two of the package's
# own patches make it do without.
debian_patches() {
	local dir=$1 tmp patch tar

	fetch qemu
	tar=$downloads/$(pins qemu | awk '/debian.tar/ { print $5 }')
	scratch tmp
	tar -C "$tmp" -xf "$tar" debian/patches || die "$tar is damaged"
	for patch in skip-unpack-edk2-blobs skip-install-dtb; do
		strictly_apply "$dir" "$tmp/debian/patches/$patch.patch" "the QEMU tree" ||
			die "a patch of the Debian package is needed for a tree without firmware sources"
	done
}

# pkg_config_for DIR: DIR/pkg-config knows the unpacked packages there, and nothing of the system's
pkg_config_for() {
	cat >"$1/pkg-config" <<-'EOF'
	#!/bin/sh
	export PKG_CONFIG_SYSROOT_DIR="$(cd "$(dirname "$0")" && pwd -P)"
	export PKG_CONFIG_LIBDIR="$(echo "$PKG_CONFIG_SYSROOT_DIR"/usr/lib/*/pkgconfig)"
	exec pkg-config "$@"
	EOF
	chmod +x "$1/pkg-config"
}

# --- Debian's kernels ---

debian_kernels=(debian-old debian-new)

# lay_debian_kernel FROM TO: an unpacked package, laid out like a build directory of ours. Its NVMe driver
# and ext4 are built in; of its modules only virtio-iommu is kept.
lay_debian_kernel() {
	local from=$1 to=$2 image module

	image=$(find "$from" -name 'vmlinuz*' -type f)
	module=$(find "$from" -name 'virtio-iommu.ko*' -type f)
	[[ -f $image && -f $module ]] || die "the package of $base_id has no kernel, or no virtio-iommu"
	mkdir -p "$(dirname "$to/$arch_image")"
	mv "$image" "$to/$arch_image"
	mv "$module" "$to/"
	basename "$module" >"$to/.lab-modules"
	: >"$to/.lab-depends"
}

# unpack_debian_kernel NAME: sets kernel_build
unpack_debian_kernel() {
	local cpio

	unpack linux
	cpio=$pristine/$base_id/usr/gen_init_cpio.c
	unpack "$1"
	kernel_build=$pristine/$base_id
	[[ -x $kernel_build/usr/gen_init_cpio ]] || {
		mkdir -p "$kernel_build/usr"
		gcc -O2 -o "$kernel_build/usr/gen_init_cpio.$$" "$cpio" || die "usr/gen_init_cpio.c does not compile"
		mv "$kernel_build/usr/gen_init_cpio.$$" "$kernel_build/usr/gen_init_cpio"
	}
}
