# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Patches as commits: a git tree to edit, and back; variants of a built tree.

# lab edit linux|qemu [DIR]
lab_edit() {
	local what=${1:-} dir=${2:-} bare
	local -a patches

	[[ $what == linux || $what == qemu ]] || die "lab edit: linux or qemu?"
	need_packages
	dir=$(realpath -m "${dir:-$repo/build/edit-$what}")
	if [[ -e $dir/.git ]]; then
		die "$dir exists already" "Go on editing there; or, if it is no longer needed: rm -r $dir"
	fi
	select_tree "$what"
	lock "$tree_lock" "the $what tree '$work_name'"
	make_tree "$what"
	bare=$cache/git/$base_id.git
	[[ ! -d $tree_base ]] || rm -rf "$bare"
	if [[ ! -d $bare ]]; then
		step "making a git repository of $base_id (once)"
		mkdir -p "$cache/git"
		rm -rf "$bare.new"
		git init -q --bare -b base "$bare.new"
		git --git-dir="$bare.new" config core.bare false
		git --git-dir="$bare.new" config gc.auto 0
		printf '%s\n' '/build-*' '/.lab-*' >"$bare.new/info/exclude"
		long "adding its files" "$cache/logs/edit-$what.log" 0 . \
			git --git-dir="$bare.new" --work-tree="$base_dir" -c core.excludesFile=/dev/null \
			-c core.compression=1 add --all --force . || exit 1
		lab_git --git-dir="$bare.new" --work-tree="$base_dir" commit -q -m "$base_id"
		git --git-dir="$bare.new" config core.bare true
		mv "$bare.new" "$bare"
	fi
	release
	step "checking it out into $dir"
	mkdir -p "$(dirname "$dir")"
	long "git clone" "$cache/logs/edit-$what.log" 0 . git clone --shared --branch base "$bare" "$dir" || exit 1
	git -C "$dir" checkout -q -b work
	link_files "$what" "$dir"
	mapfile -t patches < <(find "$repo/$what-patches" -maxdepth 1 -name '*.patch' | LC_ALL=C sort)
	if ((${#patches[@]})) && ! lab_git -C "$dir" am --quiet --keep-non-patch "${patches[@]}"; then
		die "a patch does not apply to $base_id" \
			"Make it fit in $dir, then there: git am --continue" \
			"When the last one is applied: tools/lab/lab export $what $dir"
	fi
	echo "$dir"
	note "Our files are links into the repository: what you edit there is edited here."
	note "Changes to other files: commit them, one commit per patch (git commit --amend, git rebase -i base)."
	note "Then: tools/lab/lab export $what"
}

lab_git() {
	git -c user.name=vhost-iommu -c user.email=vhost-iommu@example.org -c commit.gpgSign=false \
		-c core.hooksPath=/dev/null -c core.excludesFile=/dev/null "$@"
}

our_root() {
	if [[ $1 == linux ]]; then
		echo "$repo"
	else
		echo "$repo/qemu"
	fi
}

# Our files in an edited tree: links, not tracked there.
link_files() {
	local what=$1 dir=$2 root file

	root=$(our_root "$what")
	"${what}_files" >"$dir/.git/lab-files"
	while read -r file; do
		mkdir -p "$dir/$(dirname "$file")"
		ln -sfn "$root/$file" "$dir/$file"
		echo "/$file"
	done <"$dir/.git/lab-files" >>"$dir/.git/info/exclude"
	if [[ $what == qemu ]]; then
		import_header "$dir" "$dir"
		{
			echo "/$qemu_headers/$(basename "$wire_header")"
			printf "/$qemu_ioctl_headers/%s\n" "${ioctl_headers[@]##*/}"
			qemu_imports | sed 's;.* ;/;'
		} >>"$dir/.git/info/exclude"
		import_shared "$dir"
	fi
}

# lab export linux|qemu [DIR]
lab_export() {
	local what=${1:-} dir=${2:-} root file new old changed=0 name
	local -a files

	[[ $what == linux || $what == qemu ]] || die "lab export: linux or qemu?"
	dir=${dir:-$repo/build/edit-$what}
	root=$(our_root "$what")
	[[ -e $dir/.git/lab-files ]] || die "$dir is not a tree made by lab edit $what"
	[[ ! -d $dir/.git/rebase-apply && ! -d $dir/.git/rebase-merge ]] ||
		die "$dir is in the middle of a git am or rebase" "Finish it first."
	if [[ $(git -C "$dir" status --porcelain --untracked-files=no) ]]; then
		git -C "$dir" status --short --untracked-files=no >&2
		die "$dir has changes that are in no commit" \
			"Commit them there: git commit -a (a new patch), or git commit -a --amend (the last one)."
	fi

	# an editor may have put a file where the link was; new files belong into the repository
	while read -r file; do
		if [[ -f $dir/$file && ! -L $dir/$file ]]; then
			cmp -s "$dir/$file" "$root/$file" || { cp "$dir/$file" "$root/$file"; echo "changed: $file"; }
		elif [[ ! -e $dir/$file && -e $root/$file ]]; then
			rm "$root/$file"
			echo "removed: $file"
		fi
	done <"$dir/.git/lab-files"
	mapfile -t files < <(git -C "$dir" ls-files --others --exclude-standard | not_ours)
	for file in "${files[@]}"; do
		if [[ $what == linux && ! $file =~ ^(drivers|include|tools/testing)/ ]]; then
			warn "$file is new, but not below drivers/, include/ or tools/testing/: left alone"
			continue
		fi
		mkdir -p "$root/$(dirname "$file")"
		cp "$dir/$file" "$root/$file"
		echo "new: $file"
	done
	link_files "$what" "$dir"

	scratch new
	lab_git -C "$dir" -c core.abbrev=12 format-patch -q -N --zero-commit --no-signature --no-renames \
		-o "$new" base..HEAD
	while read -r file; do
		name=$(basename "$file")
		if [[ ! -f $new/$name ]]; then
			rm "$file"
			echo "removed: $what-patches/$name"
		fi
	done < <(find "$repo/$what-patches" -maxdepth 1 -name '*.patch' | LC_ALL=C sort)
	mkdir -p "$repo/$what-patches"
	while read -r file; do
		name=$(basename "$file")
		old=$repo/$what-patches/$name
		# hashes of blobs say nothing that the diff does not say
		if [[ -f $old ]] && cmp -s <(grep -v '^index ' "$old") <(grep -v '^index ' "$file"); then
			continue
		fi
		cp "$file" "$old"
		echo "written: $what-patches/$name"
		changed=1
	done < <(find "$new" -name '*.patch' | LC_ALL=C sort)
	((changed)) || echo "the patches are as they were" >&2
}

# lab variant [--host HOST] NAME [PATCH...]: a copy of the built tree with more patches
lab_variant() {
	local name from=$work_name extra tree_from entry patch number=0

	select_host vtd
	if [[ ${1:-} == --host ]]; then
		select_host "${2:-}"
		shift 2
	fi
	name=${1:-}
	if [[ $name == --delete ]]; then
		name=${2:-}
		[[ $name =~ ^[A-Za-z0-9_.-]+$ && $name != main ]] || die "lab variant --delete: which one?"
		rm -rf "${cache:?}/work/$name"
		return
	fi
	[[ $name =~ ^[A-Za-z0-9_.-]+$ && $name != "$from" ]] || die "lab variant: which name?" \
		"Usage: tools/lab/lab variant [--host HOST] NAME [PATCH...]"
	shift
	for patch; do
		[[ -f $patch ]] || die "there is no patch $patch"
	done
	need_packages
	select_tree linux
	tree_from=$tree
	work_name=$name
	select_tree linux
	if [[ ! -d $tree ]]; then
		work_name=$from
		sync_tree linux
		work_name=$name
		select_tree linux
		step "copying the tree to '$name'"
		rm -rf "$tree.new"
		mkdir -p "$tree.new"
		while read -r entry; do
			case $entry in
			.lab-*) cp -a --reflink=auto "$tree_from/$entry" "$tree.new/" ;;
			build-*) ;;
			# the builds write nothing here, and the lab replaces files, never writes into them
			*) cp -al "$tree_from/$entry" "$tree.new/" ;;
			esac
		done < <(ls -A "$tree_from")
		mv "$tree.new" "$tree"
		release
	fi
	echo "$from" >"$cache/work/$name/origin"
	extra=$cache/work/$name/extra-linux
	rm -rf "$extra"
	mkdir -p "$extra"
	for patch; do
		number=$((number + 1))
		cp "$patch" "$extra/$(printf %04d "$number")-$(basename "$patch")"
	done
	build_linux "$(machine_kind lab)" || exit 1
	if [[ $host_is_guest ]]; then
		note "run it with: tools/lab/lab run --guest $arch --work $name PROGRAM"
	else
		note "run it with: tools/lab/lab run --host $host --work $name PROGRAM"
	fi
}
