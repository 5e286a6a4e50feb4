# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The full stack: our emulated host, with its vendor's IOMMU, runs our kernel with KVM; there our QEMU runs
# a guest with virtio-iommu, which gets the host's endpoints by VFIO.

# Where things are in the host's VM, and the ports by which they leave it
guest_place=/lab/guest
port_console=/dev/vport0p1 # the guest's kernel log
port_qmp=/dev/vport0p2     # QMP of the guest's QEMU
port_errors=/dev/vport0p3  # what the guest's QEMU has to say
port_trace=/dev/vport0p4   # and its trace events
port_copies=/dev/vport0p5  # files of the host's VM
# The endpoints that the guest gets are at this slot of the root bus and those after it.
passed_slot=16
# In the guest, the first edu device is at the slot after this one.
edu_slot=23

# passed_address NUMBER: of the endpoint with this number, in the host
passed_address() {
	printf '0000:00:%x.0' $((passed_slot + $1))
}

# is_emulated ID: this endpoint of a guest is not one of a host
is_emulated() {
	[[ ! $full || ,$emulated, == *,$1,* ]]
}

# passed_number ID: of an endpoint, among those that the guest gets
passed_number() {
	local id number=0

	for id in $(seq -f edu%g "$edus") fs raw nic0 nic1; do
		[[ $id != "$1" ]] || break
		is_emulated "$id" || number=$((number + 1))
	done
	echo "$number"
}

# The QEMU that runs in the host: from the same sources as the one that runs the host
prepare_qemu_static() {
	if [[ $quiet ]]; then
		build_qemu_static "$arch" 2>"$dir/build.log" || die "the static QEMU was not built" "$(<"$dir/build.log")"
	else
		build_qemu_static "$arch" || die "the static QEMU was not built"
	fi
	cp "$qemu_static" "$dir/qemu-static"
}

# The guest's CPUs are those of the host.
kvm_options() {
	options+=(-accel kvm -L "$at" -no-shutdown -chardev "pipe,id=qmp,path=$port_qmp" -mon chardev=qmp,mode=control)
	count_options
}

# The guest's kernel, initial RAM disk and QEMU become files of the host, and its options and endpoints are in
# the host's script. From here on, options, append and dir are the host's.
put_into_host() {
	local kernel_work=${host_work:-$kernel_work} inside=$dir/host$guest_place at=$dir console=$dir/console_host smp=$((icount ? 1 : 2)) mem=2G file item number=0
	local guest_qemu=("$guest_place/qemu" "${options[@]}")

	[[ $host_kernel != debug ]] || mem=3G
	: >"$console"
	[[ ! $log ]] || rm -f "$log".{host,trace,copies}
	mkdir -p "$inside"
	mv "$dir/kernel" "$dir/initrd" "$inside/"
	mv "$dir/qemu-static" "$inside/qemu"
	for file in "${nested_firmware[@]}"; do
		cp "$file" "$inside/" || die "there is no $file" "Install it: tools/lab/lab packages"
	done

	select_host "$full"
	host_modules+=("${nested_modules[@]}")
	host_append+=("${nested_append[@]}")
	host_words+=("${nested_words[@]}")
	prepare_kernel "$([[ $host_kernel == debug ]] && echo guest-debug || echo lab)"
	cp "$kernel_build/$arch_image" "$dir/kernel"
	make_root "$dir/host"
	for item in "$port_console" "$port_qmp" "$port_errors" "$port_trace" "$port_copies"; do
		word i "$item"
	done
	word r "$port_errors"
	word f "$port_copies"
	for item in "${host_writes[@]}"; do
		word w "$item"
	done
	for item in "${passed[@]}"; do
		word p "$item"
	done
	for item in "${host_files[@]}"; do
		word s "$item"
	done
	if [[ ${host_program:-} ]]; then
		mkdir -p "$dir/host/bin"
		cp "${host_program[0]}" "$dir/host/bin/"
		check_program "${host_program[0]}"
		guest_qemu=("/bin/$(basename "${host_program[0]}")" "${host_program[@]:1}" "${guest_qemu[@]}")
	fi
	for item in "${guest_qemu[@]}"; do
		if [[ $item == *tsc_early_khz=@* ]]; then
			word t "$item"
		else
			word a "$item"
		fi
	done
	word x ''
	for item in "${host_copies[@]}"; do
		word c "$item"
	done
	make_initrd "$dir/host" "$dir/initrd"

	choose_properties
	options=(-no-reboot -device virtio-serial-pci)
	append=("${host_appends[@]}")
	[[ $host_kernel != debug || $arch != x86 ]] || append+=(no5lvl)
	machine_options
	emulation_options
	for item in console '' qemu_says trace copies; do
		number=$((number + 1))
		# attend is the other end of QMP
		[[ ! $item ]] || options+=(-chardev "file,id=port$number,path=$dir/$item")
		options+=(-device "virtserialport,nr=$number,chardev=$([[ $item ]] && echo "port$number" || echo attend)")
	done
	edus=0
	add_devices
	options+=("${host_devices[@]}" "${host_qemu_args[@]}" -append "${append[*]}")
}

# judge_full: what became of the host's VM and, in it, of QEMU and its guest? The status is the guest's, if it has one.
judge_full() {
	local status=0 guest_status=0 file

	tr -d '\r' <"$dir/console_host" >"$dir/log.host"
	if [[ $log ]]; then
		cp "$dir/log.host" "$log.host"
		for file in trace copies; do
			[[ ! -s $dir/$file ]] || cp "$dir/$file" "$log.$file"
		done
	fi
	awk '{ if (!n[$0]++) line[++last] = $0 }
		END {
			for (i = 1; i <= last; i++)
				print "lab: the guest'"'"'s QEMU says: " line[i] (n[line[i]] > 1 ? " (" n[line[i]] " times)" : "")
		}' "$dir/qemu_says" >&2
	judge "$dir/log.host" "$rc" "$limit" "${log:+$log.host}" 2>"$dir/said" || status=$?
	sed 's/^lab: /lab: the host: /' "$dir/said" >&2
	if ((status == 125)); then
		[[ ! -s $dir/log ]] || {
			echo "     The end of the guest's kernel log:"
			tail -n 15 "$dir/log" | sed 's/^/     | /'
			[[ ! $log ]] || echo "     All of it: $log"
		} >&2
		return 125
	fi
	((status == 0)) || echo "lab: the guest's QEMU has ended with status $status" >&2
	judge "$dir/log" "$((status ? 1 : 0))" "$limit" "$log" || guest_status=$?
	((guest_status)) || guest_status=$status
	return "$guest_status"
}
