# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Virtual machines: one kernel, one initial RAM disk made for the run, our emulated host or guest.

# lab run [OPTIONS] PROGRAM [ARGUMENTS] [--then PROGRAM [ARGUMENTS]]...
lab_run() {
	# what is built for the VM leaves the caller's tree selected
	local work_name=$work_name
	local kernel=lab kernel_work=$work_name limit= icount= smp= mem= edus=1 log= hugepages= leaks= quiet=
	local append=() environment=() files=() qemu_args=() writes=() modules=() trace=
	local vtd='' smmu='' smmus=1 erratum='' host=vtd viommu='' qemu=ours reboots='' attend=()
	local full='' vhost='' emulated='' host_files=() host_kernel='' host_work='' host_appends=() host_writes=() host_copies=() host_qemu_args=() host_devices=() passed=()
	local host_program=() vendor=''
	local dir script argument first program rc=0 status line at console trace_file

	while (($#)); do
		case $1 in
		--host) host=$2; shift ;;
		--guest) host=guest-$2; shift ;;
		--full) full=$2; shift ;;
		--vhost) vhost=$2; shift ;;
		--vendor) vendor=1 ;;
		--emulated) emulated=$2; shift ;;
		--host-work) host_work=$2; shift ;;
		--host-kernel) host_kernel=$2; shift ;;
		--host-append) host_appends+=("$2"); shift ;;
		--host-write) host_writes+=("$2"); shift ;;
		--host-copy) host_copies+=("$2"); shift ;;
		--host-qemu-arg) host_qemu_args+=("$2"); shift ;;
		--host-program) read -r -a host_program <<<"$2"; shift ;;
		--viommu) viommu=$2; shift ;;
		--qemu) qemu=$2; shift ;;
		--reboots) reboots=1 ;;
		--kernel) kernel=$2; shift ;;
		--module) modules+=("$2"); shift ;;
		--work) kernel_work=$2; shift ;;
		--timeout) limit=$2; shift ;;
		--icount) icount=1 ;;
		--smp) smp=$2; shift ;;
		--mem) mem=$2; shift ;;
		--edu) edus=$2; shift ;;
		--env) environment+=("$2"); shift ;;
		--log) log=$2; shift ;;
		--append) append+=("$2"); shift ;;
		--hugepages) hugepages=$2; shift ;;
		--write) writes+=("$2"); shift ;;
		--file) files+=("$2"); shift ;;
		--leaks) leaks=1 ;;
		--vtd) vtd=$2; shift ;;
		--smmu) smmu=$2; shift ;;
		--smmus) smmus=$2; shift ;;
		--smmu-erratum) erratum=1 ;;
		--qemu-arg) qemu_args+=("$2"); shift ;;
		--trace) trace=$2; shift ;;
		--quiet) quiet=1 ;;
		--) shift; break ;;
		-*) die "lab run has no option $1" "See tools/lab/lab help run." ;;
		*) break ;;
		esac
		shift
	done
	(($#)) || die "lab run: which program?" "Usage: tools/lab/lab run [OPTIONS] PROGRAM [ARGUMENTS]"
	limit=${limit:-$([[ $full ]] && echo 300 || echo 120)}
	smp=${smp:-$((icount ? 1 : 2))}
	# What is prepared quietly is no step of its own.
	[[ ! $quiet ]] || local step_all=0
	check_run_options
	if [[ $full ]]; then
		select_nested "$full"
		[[ ! $vendor ]] || select_vendor
	else
		select_host "$host"
	fi

	mem=${mem:-$host_mem}

	need_packages
	# A private copy of all that the run needs: the trees may change while it goes on.
	scratch dir
	prepare_qemu
	choose_properties
	prepare_kernel "$kernel"
	for argument in "${modules[@]}"; do
		has_module "$kernel_build" "$argument" || die "this kernel has no module $argument"
	done
	cp "$kernel_build/$arch_image" "$dir/kernel"
	make_root "$dir/root" "${modules[@]}"
	[[ ! $host_is_guest ]] || guest_words
	[[ ! $hugepages ]] || word h "$hugepages"
	for argument in "${writes[@]}"; do
		word w "$argument"
	done
	word b ''
	# what guest_hotplug plugs in: the drive "raw"
	[[ ! $full ]] || is_emulated raw ||
		environment+=("GUEST_PLUG=\"driver\": \"vfio-pci\", \"iommufd\": \"iommufd0\", \"host\": \"$(passed_address "$(passed_number raw)")\"")
	for argument in "${environment[@]}"; do
		[[ $argument == *=* ]] || die "--env wants NAME=VALUE, not '$argument'"
		word e "$argument"
	done
	for argument in "${files[@]}"; do
		line=${argument#*:}
		[[ $argument == *:/* ]] || line=/bin/$(basename "${argument%%:*}")
		mkdir -p "$dir/root$(dirname "$line")"
		cp "${argument%%:*}" "$dir/root$line" || die "--file $argument: no such file"
	done
	first=1
	for argument; do
		if [[ $argument == --then ]]; then
			word x ''
			first=1
		elif [[ $first ]]; then
			first=
			if [[ -f $argument ]]; then
				program=/bin/$(basename "$argument")
				[[ -e $dir/root$program ]] || cp "$argument" "$dir/root$program"
				check_program "$argument"
			elif [[ $argument == /* && -e $dir/root$argument ]]; then
				program=$argument
			else
				die "there is no program $argument"
			fi
			word a "$program"
		else
			word a "$argument"
		fi
	done
	word x ''
	[[ ! $leaks ]] || word l ''
	make_initrd "$dir/root" "$dir/initrd"
	if [[ $reboots ]]; then
		mkdir "$dir/root/lab/kexec"
		cp "$dir/kernel" "$dir/root/lab/kexec/kernel"
		mv "$dir/initrd" "$dir/root/lab/kexec/initrd"
		make_initrd "$dir/root" "$dir/initrd"
	fi

	at=$dir console=$dir/console trace_file=${log:-$console}.trace
	[[ ! $full ]] || at=$guest_place console=$port_console trace_file=$port_trace
	local options=()
	machine_options
	[[ $reboots ]] || options+=(-no-reboot)
	[[ ! $leaks ]] || append+=(kmemleak=on)
	# With 5-level tables KASAN takes good addresses for wild ones, if an interrupt comes while
	# identify_cpu() sets up the bits of the boot CPU.
	[[ $kernel != debug || $arch != x86 ]] || append+=(no5lvl)
	if [[ $full ]]; then
		kvm_options
	else
		emulation_options
	fi
	add_devices
	[[ ! $host_is_guest ]] || add_endpoints
	[[ ! $trace ]] || options+=(-trace "$trace" -D "$trace_file")
	options+=("${qemu_args[@]}" -append "${append[*]}")
	[[ ! $full ]] || put_into_host
	release
	[[ $smmus == 1 && ! $erratum ]] || edit_device_tree

	: >"$dir/console"
	boot "$dir" "$limit" "${options[@]}" || rc=$?
	tr -d '\r' <"$dir/console" >"$dir/log"
	if [[ $log ]]; then
		mkdir -p "$(dirname "$log")"
		cp "$dir/log" "$log"
	fi
	status=0
	if [[ $full ]]; then
		judge_full || status=$?
	else
		judge "$dir/log" "$rc" "$limit" "$log" || status=$?
	fi
	if [[ -s $dir/findings ]]; then
		sed 's/^/lab: /' "$dir/findings" >&2
		((status)) || status=1
	fi
	return "$status"
}

# QEMU in $dir/qemu
prepare_qemu() {
	if [[ $qemu == debian ]]; then
		[[ -x /usr/bin/$host_qemu ]] || die "there is no /usr/bin/$host_qemu" "Install it: tools/lab/lab packages"
		# not a copy: it looks for its firmware from where it is
		printf '#!/bin/sh\nexec /usr/bin/%s "$@"\n' "$host_qemu" >"$dir/qemu"
		chmod +x "$dir/qemu"
		# the second serial port of its arm64 machine belongs to the secure world
		[[ $arch != arm64 ]] || host_output=/dev/console
	else
		if [[ $quiet ]]; then
			build_qemu 2>"$dir/build.log" || die "QEMU was not built" "$(<"$dir/build.log")"
		else
			build_qemu || die "QEMU was not built"
		fi
		cp "$qemu_build/$host_qemu" "$dir/qemu"
	fi
	[[ ! $full ]] || prepare_qemu_static
}

# The properties of the IOMMU: those that this QEMU has of the lab's, and the user's
choose_properties() {
	local finding iommu=/machine/peripheral/iommu0/virtio-backend

	"$dir/qemu" -machine none -device "$host_iommu,help" >"$dir/iommu.help" 2>&1 ||
		die "this $host_qemu has no $host_iommu" "$(<"$dir/iommu.help")"
	host_properties+=$(optional_properties "$dir/iommu.help" "${host_optional[@]}")
	if [[ $host_is_guest ]]; then
		host_properties+=${viommu:+,$viommu}${vhost:+,vhost=$vhost}
	else
		host_properties=${vtd:-$host_properties${smmu:+,$smmu}}
	fi
	if [[ $(last_value check "$host_properties") == on && $(last_value stage1 "$host_properties") == on ]]; then
		for finding in stale-translations stale-remaps stale-table-writes false-promises; do
			attend+=(--zero "$iommu:$finding")
		done
		# with nothing under way; a lazy driver has always something
		[[ " ${append[*]} " != *" iommu.strict=1 "* ]] || attend+=(--zero "$iommu:stale-entries")
	fi
}

# prepare_kernel KIND: in $kernel_build
prepare_kernel() {
	local kernel=$1

	if [[ $kernel == debian-* ]]; then
		unpack_debian_kernel "$kernel-$arch"
		return
	fi
	# a variant is one of the kernel; QEMU is the common one
	work_name=$kernel_work
	if [[ $quiet ]]; then
		build_linux "$(machine_kind "$kernel")" 2>"$dir/build.log" ||
			die "the $kernel kernel was not built" "$(<"$dir/build.log")"
	else
		build_linux "$(machine_kind "$kernel")" || die "the $kernel kernel was not built"
	fi
}

# make_root DIR MODULE...: what the initial RAM disk of the machine holds in any case; the script loads the modules
make_root() {
	local root=$1 line
	shift

	mkdir -p "$root"/{bin,dev,proc,sys,tmp,lab/modules}
	compile_init "$root/init"
	script=$root/lab/script
	: >"$script"
	word o "$host_output"
	for line in "${host_words[@]}"; do
		word "$line" ''
	done
	while read -r line; do
		copy_module "$kernel_build/$line" "$root/lab/modules"
		line=$(basename "$line")
		word m "/lab/modules/${line%.xz}"
	done < <(needed_modules "$kernel_build" "${host_modules[@]}" "$@")
}

# The options for QEMU that the machine is made with, and how its kernel is started: files are in $at.
machine_options() {
	options+=(-nodefaults -display none -monitor none -nic none -m "$mem" "${host_machine[@]}"
		-chardev "file,id=console,path=$console" -serial chardev:console
		-chardev stdio,id=output,signal=off -serial chardev:output
		-kernel "$at/kernel" -initrd "$at/initrd")
	append=("console=$host_console" panic=-1 oops=panic printk.devkmsg=on "${host_append[@]}" "${append[@]}")
}

# Everything is emulated.
emulation_options() {
	if [[ $icount ]]; then
		options+=(-accel 'tcg,thread=single' -icount 'shift=0,sleep=off' -rtc 'base=2026-01-01,clock=vm')
	else
		options+=(-accel 'tcg,thread=multi')
	fi
	options+=(-seed 1)
	count_options
}

count_options() {
	[[ ! $icount ]] || append+=(nokaslr "${host_append_icount[@]}")
	options+=(-smp "$smp")
}

# copy_module FILE DIR: as the VM's kernel takes it
copy_module() {
	if [[ $1 == *.xz ]]; then
		xz -dc "$1" >"$2/$(basename "$1" .xz)"
	else
		cp "$1" "$2/"
	fi
}

# What a guest does before it runs programs. Its IOMMU remaps no interrupts on x86: VFIO wants to be
# told that this is known.
guest_words() {
	[[ $arch != x86 || $kernel == debian-* ]] || word w /sys/module/iommufd/parameters/allow_unsafe_interrupts=1
}

# The endpoints of a guest: a drive with a file system, a drive without and a NIC behind ports, from
# which they can be pulled out, and another NIC, to which the first one is connected.
add_endpoints() {
	local name image backend
	local -a backends=()

	attend=("$lab/attend" --findings "$dir/findings" ${full:+--inner} "${attend[@]}")
	for name in fs raw; do
		image=$dir/$name.img
		truncate -s 128M "$image"
		backend=driver=raw,node-name=$name,file.driver=file,cache.no-flush=on,file.filename=
		if [[ $full ]] && is_emulated "$name"; then
			host_files+=("/tmp/$name.img=$(stat -c %s "$image")")
			options+=(-blockdev "$backend/tmp/$name.img")
		else
			backends+=(-blockdev "$backend$image")
		fi
	done
	/sbin/mke2fs -q -t ext4 -F "$dir/fs.img" || die "no file system could be made on $dir/fs.img"
	backends+=(-netdev "hubport,id=net0,hubid=0" -netdev "hubport,id=net1,hubid=0")
	if [[ $full ]]; then
		host_devices+=("${backends[@]}")
	else
		options+=("${backends[@]}")
	fi
	add_endpoint nvme,serial=fs,drive=fs id=fs
	options+=(-device "pcie-root-port,id=port1,bus=pcie.0,chassis=1")
	add_endpoint nvme,serial=raw,drive=raw id=raw,bus=port1
	options+=(-device "pcie-root-port,id=port2,bus=pcie.0,chassis=2")
	add_endpoint e1000e,netdev=net0,mac=52:54:00:00:00:01,romfile= id=nic0,bus=port2
	add_endpoint e1000e,netdev=net1,mac=52:54:00:00:00:02,romfile= id=nic1
}

# add_endpoint DEVICE id=ID[,PROPERTIES] [AT]: it is emulated, for the host of a full stack if there is one. Then
# the guest gets it from there, unless --emulated names it. The properties say what it is and where in the guest;
# AT is where it is in the host.
add_endpoint() {
	local number=${#passed[@]} id=${2#id=} at=${3:-}

	if is_emulated "${id%%,*}"; then
		options+=(-device "$1,$2")
		return
	fi
	passed+=("$([[ $at ]] && echo "$pxb_endpoint" || passed_address "$number")")
	host_devices+=(-device "$1,${at:-bus=pcie.0,addr=$(printf %x $((passed_slot + number)))}")
	options+=(-device "vfio-pci,host=${passed[number]},iommufd=iommufd0,$2")
}

# The last edu device is behind the last IOMMU. Only bridges can be plugged into the expander. In a guest, edu
# devices are at fixed places, so that tests can name them.
add_devices() {
	local number edu=edu,dma_mask=0xffffffffffff second

	[[ ! $host_is_guest || ! $full ]] || options+=(-object iommufd,id=iommufd0)
	options+=(-device "$host_iommu,id=iommu0${host_bus:+,primary-bus=$host_bus},$host_properties")
	if [[ ! $host_is_guest ]] && ((smmus > 1)); then
		options+=(-device "pxb-pcie,id=pxb,bus_nr=$pxb_bus,bus=$host_bus"
			-device "$host_iommu,id=iommu1,primary-bus=pxb,$host_properties"
			-device "pcie-root-port,id=pxb_port,bus=pxb,chassis=1")
	fi
	for ((number = 1; number <= edus; number++)); do
		second=$( ((number == edus && smmus > 1)) && echo bus=pxb_port || true)
		if [[ $host_is_guest ]]; then
			add_endpoint "$edu" "id=edu$number,bus=pcie.0,addr=$(printf %x $((edu_slot + number)))" "$second"
		else
			options+=(-device "$edu,${second:-bus=pcie.0}")
		fi
	done
}

# The device tree that QEMU makes for these options, and what it leaves out.
edit_device_tree() {
	"$dir/qemu" "${options[@]}" ${full:+-chardev null,id=attend} -machine "dumpdtb=$dir/dtb" >"$dir/dtb.log" 2>&1 </dev/null || true
	[[ -s $dir/dtb ]] || die "QEMU did not write its device tree" "$(<"$dir/dtb.log")"
	((smmus == 1)) || add_second_smmu "$dir/dtb"
	[[ ! $erratum ]] || add_erratum "$dir/dtb"
	options+=(-dtb "$dir/dtb")
}

# What can be said about lab run's options before anything is built.
check_run_options() {
	local option name machine=${full:-$host}

	if [[ $full ]]; then
		[[ " ${hosts[*]} " == *" $full "* ]] || die "lab run --full $full: there is no such host" "There are: ${hosts[*]}"
		[[ $host == vtd ]] || die "lab run: --full has a host and a guest in it" "Leave out --host and --guest."
		[[ $qemu == ours ]] || die "lab run --qemu $qemu is for guests alone" "Say --guest x86 or --guest arm64."
		[[ ${vhost:-on} == on || $vhost == off ]] || die "lab run --vhost: on or off, not $vhost"
		[[ ! $vendor || $full == vtd ]] || die "lab run --vendor: only for --full vtd" \
			"QEMU 10.2 has no emulated SMMU for devices of the host."
		[[ ! $vendor || ! $vhost$viommu ]] || die "lab run --vendor: this guest has no virtio-iommu"
		[[ ! $erratum ]] || die "lab run --full has no SMMU with the erratum"
		[[ $emulated =~ ^((edu[0-9]+|raw)(,|$))*$ ]] || die "lab run --emulated: edu1, edu2, ... and raw, not $emulated"
		[[ ${host_kernel:=lab} == lab || $host_kernel == debug ]] ||
			die "lab run --host-kernel $host_kernel: there is no such kernel" "There are lab and debug."
		[[ ! ${host_program:-} || -x ${host_program[0]} ]] ||
			die "lab run --host-program: there is no program ${host_program[0]}"
	else
		[[ ! $vendor ]] || die "lab run --vendor is for --full"
		for option in vhost emulated host-work=host_work host-kernel=host_kernel host-append=host_appends host-write=host_writes \
			host-copy=host_copies host-qemu-arg=host_qemu_args host-program=host_program; do
			name=${option#*=}
			[[ ! ${!name:-} ]] || die "lab run --${option%=*} is for --full" "Say --full vtd or --full smmuv3."
		done
	fi
	if [[ $host == guest-* ]]; then
		[[ " ${guests[*]} " == *" $host "* ]] || die "lab run --guest ${host#guest-}: there is no such guest" \
			"There are: ${guests[*]#guest-}"
	elif [[ ! $full ]]; then
		[[ " ${hosts[*]} " == *" $host "* ]] || die "lab run --host $host: there is no such host" "There are: ${hosts[*]}"
		for option in viommu reboots; do
			[[ ! ${!option} ]] || die "lab run --$option is for guests" "Say --guest x86 or --guest arm64."
		done
		[[ $kernel != debian-* ]] || die "lab run --kernel $kernel is for guests" "Say --guest x86 or --guest arm64."
		[[ $qemu == ours ]] || die "lab run --qemu $qemu is for guests" "Say --guest x86 or --guest arm64."
	fi
	[[ " lab debug 16k 64k ${debian_kernels[*]} " == *" $kernel "* ]] ||
		die "lab run --kernel $kernel: there is no such kernel" \
			"There are lab and debug, and for guests: ${debian_kernels[*]}, 16k and 64k"
	[[ $kernel != [0-9]* || $host == guest-arm64 ]] || die "lab run --kernel $kernel is for --guest arm64"
	[[ $qemu == ours || $qemu == debian ]] || die "lab run --qemu: ours or debian, not $qemu"
	for option in smp edu=edus smmus timeout=limit; do
		name=${option#*=}
		[[ ${!name} =~ ^[0-9]+$ ]] || die "lab run --${option%=*} wants a number, not '${!name}'"
	done
	[[ ! $vtd || $machine == vtd ]] || die "lab run --vtd is for --host vtd" "Properties of an SMMU: --smmu"
	[[ ! $smmu || $machine == smmuv3 ]] || die "lab run --smmu is for --host smmuv3" "Properties of a VT-d: --vtd"
	((smmus == 1 || smmus == 2)) || die "lab run --smmus: 1 or 2, not $smmus"
	((smmus == 1)) || [[ $machine == smmuv3 ]] || die "lab run --smmus is for --host smmuv3"
	[[ ! $erratum || $machine == smmuv3 ]] || die "lab run --smmu-erratum is for --host smmuv3"
}

word() {
	printf '%s%s\0' "$1" "$2" >>"$script"
}

# QEMU's output, the program's, goes through a pipe: stdout may be anything.
boot() {
	local dir=$1 limit=$2 rc=0
	shift 2

	set -m
	timeout -k 5 "$limit" "${attend[@]}" "$dir/qemu" "$@" </dev/null 2>"$dir/qemu.err" > >(exec cat) &
	child=$!
	set +m
	wait "$child" || rc=$?
	child=
	if [[ -s $dir/qemu.err ]] && ((rc != 0 && rc != 124 && rc != 137)); then
		sed 's/^/lab: qemu: /' "$dir/qemu.err" >&2
	fi
	return "$rc"
}

# judge LOG QEMU_STATUS LIMIT KEPT: how did it go? The status is that of the first program that failed.
judge() {
	local log=$1 rc=$2 limit=$3 kept=$4 status why=

	# What init wrote starts a line after the kernel's time stamp.
	sed -n -E 's/^(<[0-9]+>)?(\[[^]]*\])* *lab: //p' "$log" >"$log.lab"
	sed -n 's/^failed /lab: in the VM: /p' "$log.lab" >&2
	if ((rc == 124 || rc == 137)); then
		why="the VM was still running after $limit s and was stopped"
	elif ! grep -q -x done "$log.lab"; then
		if grep -q -E 'Kernel panic' "$log"; then
			why="the VM's kernel panicked"
		else
			why="the VM ended before its programs had (QEMU's status: $rc)"
		fi
	fi
	if [[ $why ]]; then
		status=$(sed -n 's/^start [0-9]* //p' "$log.lab" | tail -n 1)
		{
			echo "lab: $why${status:+; it was running $status}. The end of its kernel log:"
			tail -n 30 "$log" | sed 's/^/     | /'
			[[ ! $kept ]] || echo "     All of it: $kept"
		} >&2
		return 125
	fi
	status=$(awk '$1 == "exit" && $3 != 0 { print $3; exit }' "$log.lab")
	return "${status:-0}"
}

# check_program FILE: it can run in the VM
check_program() {
	local machine

	machine=$(readelf -h "$1" 2>/dev/null | sed -n 's/^ *Machine: *//p')
	if [[ $machine && $machine != "$arch_elf" ]]; then
		die "$1 is made for $machine, the host $host has $arch_elf" \
			"Programs for each are in build/bin (x86) and build/bin-arm64 (tools/lab/lab programs)."
	fi
	if LC_ALL=C grep -q -a -m1 'ld-linux' "$1" && ! file_is_static "$1"; then
		die "$1 is linked dynamically; the VM has no libraries" "Link it with -static."
	fi
}

file_is_static() {
	! readelf -l "$1" 2>/dev/null | grep -q INTERP
}

compile_init() {
	local sum file

	sum=$(sha256sum <"$lab/init.c" | cut -c1-16)
	file=$cache/work/init-$arch-$sum
	if [[ ! -x $file ]]; then
		mkdir -p "$cache/work"
		"${arch_cross}gcc" -O2 -Wall -Wextra -static -o "$file.$$" "$lab/init.c" || die "tools/lab/init.c does not compile"
		mv "$file.$$" "$file"
	fi
	cp "$file" "$1"
}

# The kernel's own tool makes the archive: it can put device nodes in without being root.
make_initrd() {
	local root=$1 out=$2 path

	{
		echo "nod /dev/console 0600 0 0 c 5 1"
		echo "nod /dev/null 0666 0 0 c 1 3"
		(cd "$root" && find . -mindepth 1 -printf '%y /%P\n' | LC_ALL=C sort -k2) | while read -r type path; do
			if [[ $type == d ]]; then
				echo "dir $path 0755 0 0"
			else
				echo "file $path $root$path 0755 0 0"
			fi
		done
	} | LC_ALL=C sort -k2,2 >"$out.list"
	"$kernel_build/usr/gen_init_cpio" -t 0 "$out.list" >"$out" || die "the initial RAM disk could not be made"
}
