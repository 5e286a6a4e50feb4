# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The emulated machines, hosts and guests, and the architectures that they have: all that differs
# between them.

# --- architectures ---

# select_arch x86|arm64: sets arch and
#   arch_cross    prefix of the compiler's name
#   arch_make     what make has to know, for the kernel and the programs
#   arch_suffix   of directories that belong to it
#   arch_image    the kernel to boot, below its build directory
#   arch_elf      what readelf calls its machine
select_arch() {
	arch=$1
	case $arch in
	x86)
		arch_cross=
		arch_make=()
		arch_suffix=
		arch_image=arch/x86/boot/bzImage
		arch_elf='Advanced Micro Devices X86-64'
		;;
	arm64)
		arch_cross=aarch64-linux-gnu-
		arch_make=(ARCH=arm64 "CROSS_COMPILE=$arch_cross")
		arch_suffix=-arm64
		arch_image=arch/arm64/boot/Image
		arch_elf=AArch64
		;;
	*) die "there is no architecture '$arch' (x86, arm64)" ;;
	esac
}

# --- kernels ---

kinds=(lab debug lab-arm64 debug-arm64)
guest_kinds=(guest-debug guest-debug-arm64 guest-16k-arm64 guest-64k-arm64)

# select_kind KIND: sets kind_config, the files of its configuration, and its architecture
select_kind() {
	[[ " ${kinds[*]} ${guest_kinds[*]} " == *" $1 "* ]] ||
		die "there is no kernel '$1'" "There are: ${kinds[*]} ${guest_kinds[*]}"
	if [[ $1 == *-arm64 ]]; then
		select_arch arm64
	else
		select_arch x86
	fi
	kind_config=("$lab/kernel-common.config" "$lab/kernel-$arch.config")
	[[ $1 == debug* ]] || kind_config+=("$lab/kernel-guest.config" "$lab/kernel-guest-$arch.config")
	[[ $1 != *debug* ]] || kind_config+=("$lab/kernel-debug.config")
	[[ $1 != *debug* || $arch != x86 ]] || kind_config+=("$lab/kernel-debug-x86.config")
	[[ $1 != guest-debug* ]] || kind_config+=("$lab/kernel-guest-debug.config")
	[[ $1 != guest-[0-9]* ]] || kind_config+=("$lab/kernel-${1%-arm64}.config")
}

# machine_kind lab|debug|16k|64k: the kind of kernel that the selected machine runs
machine_kind() {
	if [[ $host_is_guest && $1 != lab ]]; then
		echo "guest-$1$arch_suffix"
	else
		echo "$1$arch_suffix"
	fi
}

# --- hosts and guests ---
#
# A host has the IOMMU of a vendor, a guest has virtio-iommu. A guest's endpoints are as emulated as
# a host's: it needs no host around it.

hosts=(vtd smmuv3)
guests=(guest-x86 guest-arm64)

# select_host NAME: sets host, its architecture, and
#   host_qemu          QEMU's binary
#   host_machine       its options for machine and CPU
#   host_console       the kernel's console: the first serial port
#   host_output        what the programs print: the second one
#   host_append        for the kernel's command line
#   host_append_icount the same, if instructions are counted
#   host_words         what its init does before it loads modules
#   host_iommu         the IOMMU's device
#   host_bus           the PCI bus that it serves, if it must be told
#   host_properties    its properties
#   host_optional      more of them, each used if this QEMU has it
#   host_mem           its memory, if the user does not say
#   host_modules       what it loads, if the kernel has it as a module
#   host_is_guest      not empty if it is one
select_host() {
	host=$1
	host_mem=2G
	host_modules=(vfio-pci iommufd vhost_iommu)
	host_words=()
	host_is_guest=
	case $host in
	vtd)
		select_arch x86
		host_qemu=qemu-system-x86_64
		host_machine=(-machine q35,kernel-irqchip=split -cpu max)
		host_console=ttyS0
		host_output=/dev/ttyS1
		# on a busy machine the emulated timer can miss what the kernel's check expects
		host_append=(no_timer_check)
		host_append_icount=(noapictimer)
		host_iommu=intel-iommu
		host_bus=
		host_properties=intremap=on,x-scalable-mode=on,x-flts=on,aw-bits=48
		host_optional=(x-nest=on)
		;;
	smmuv3)
		select_arch arm64
		host_qemu=qemu-system-aarch64
		# pauth=off: its emulation takes most of the time
		host_machine=(-machine "virt,gic-version=3,virtualization=on,dtb-randomness=off" -cpu "max,pauth=off")
		host_console=ttyAMA0
		host_output=/dev/ttyAMA1
		host_append=()
		host_append_icount=()
		host_iommu=arm-smmuv3
		host_bus=pcie.0
		host_properties=stage=nested
		host_optional=(fwb=on)
		;;
	guest-x86)
		select_host vtd
		host=$1
		# hot-plug by the registers of the ports, as on arm64
		host_machine=(-machine q35 -cpu max -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off)
		host_append+=(pcie_ports=native)
		select_guest
		;;
	guest-arm64)
		select_host smmuv3
		host=$1
		host_machine=(-machine "virt,gic-version=3,dtb-randomness=off" -cpu "max,pauth=off")
		select_guest
		;;
	*) die "there is no host '$host'" "There are: ${hosts[*]} ${guests[*]}" ;;
	esac
}

select_guest() {
	host_iommu=virtio-iommu-pci
	host_bus=
	host_properties=bus=pcie.0
	host_optional=(stage1=on num-invalqs=2 check=on)
	host_mem=512M
	# crc32c: ext4 asks for it by name
	host_modules=(crc32c_generic virtio_pci virtio_iommu nvme ext4 e1000e af_packet vfio-pci iommufd)
	host_is_guest=1
}

# select_nested HOST: as select_host, the guest that HOST can run by KVM; sets as well
#   nested_modules     what HOST needs for that beside its own, if the kernel has it as a module
#   nested_words       what its init does before it loads them
#   nested_append      for the command line of its kernel
#   nested_firmware    files that the guest's QEMU looks for
select_nested() {
	select_host "$1"
	select_host "guest-$arch"
	host_machine=("${host_machine[@]/#max*/host}")
	host_append_icount=()
	host_optional=(stage1=on num-invalqs=2 vhost=on)
	nested_modules=(virtio_console)
	nested_words=()
	nested_append=()
	nested_firmware=()
	if [[ $arch == x86 ]]; then
		# what AMD-V here does not have, or what costs exits for nothing
		host_machine+=(-machine smm=off,hpet=off)
		# Two exits take longer than what a kernel measures the TSC by: it is told, see put_into_host.
		host_append+=(tsc=reliable)
		host_append_icount=(tsc_early_khz=1000000)
		# A CPU that comes up measures the tick of the first one, which must not stop it when it idles.
		[[ ${icount:-} ]] || host_append+=(tsc_early_khz=@ nohz=off)
		nested_modules+=(kvm_amd)
		nested_words=(k)
		# the emulated TSCs are one; where all CPUs are busy, the kernel's watchdog may find otherwise
		nested_append=(tsc=reliable)
		nested_firmware=(/usr/share/seabios/bios-256k.bin /usr/share/qemu/{kvmvapic,linuxboot_dma}.bin)
	fi
}

# select_vendor: in place of virtio-iommu, the guest of select_nested has the IOMMU of a vendor, emulated by QEMU. It
# traps what the guest writes to its tables (caching mode).
select_vendor() {
	host_iommu=intel-iommu
	host_properties=caching-mode=on,aw-bits=39
	host_optional=()
}

# wanted_hosts: sets wanted, the hosts to use: the one that was asked for, or all. LAB_HOST comes
# from make HOST=...; a variable HOST of the environment counts only if it names a host, for some
# shells keep the machine's name there.
wanted_hosts() {
	wanted=("${hosts[@]}")
	if [[ ${LAB_HOST:-} ]]; then
		wanted=("$LAB_HOST")
	elif [[ ${HOST:-} && " ${hosts[*]} " == *" $HOST "* ]]; then
		wanted=("$HOST")
	fi
	[[ " ${hosts[*]} " == *" ${wanted[0]} "* ]] || die "there is no host '${wanted[0]}'" "There are: ${hosts[*]}"
}

# optional_properties HELP PROPERTY...: those that QEMU knows, each with a comma in front
optional_properties() {
	local help=$1 property
	shift

	for property; do
		! grep -q "^ *${property%%=*}=" "$help" || printf ,%s "$property"
	done
}

# last_value NAME PROPERTIES: the value that holds of a property that is given more than once
last_value() {
	tr , '\n' <<<"$2" | sed -n "s/^$1=//p" | tail -n 1
}

# --- two SMMUs ---
#
# The second SMMU serves a root complex of its own, a PCI expander bridge. QEMU describes that to
# ACPI only: the device tree is edited, and handed to QEMU.

# The expander's first bus, and how many it has.
pxb_bus=64
pxb_buses=16
# What is behind its port, in PCI's second domain
pxb_endpoint=0001:$(printf %x $((pxb_bus + 1))):00.0

# dt_cells DTB NODE PROPERTY: sets cells, an array of numbers
dt_cells() {
	local words

	words=$(fdtget -t x "$1" "$2" "$3") || return 1
	read -r -a cells <<<"$words"
	cells=("${cells[@]/#/0x}")
}

# dt_put DTB NODE PROPERTY NUMBER...
dt_put() {
	local dtb=$1 node=$2 property=$3
	shift 3

	# shellcheck disable=SC2046 # one word each
	fdtput -t x "$dtb" "$node" "$property" $( (($# == 0)) || printf '%x ' "$@")
}

# add_erratum DTB: the SMMUs say that they are those with erratum T264
add_erratum() {
	local dtb=$1 smmu found=

	for smmu in $(fdtget -l "$dtb" / | grep '^smmuv3@'); do
		fdtput -t s "$dtb" "/$smmu" compatible nvidia,tegra264-smmu arm,smmu-v3
		found=1
	done
	[[ $found ]] || die "QEMU's device tree has no SMMU"
}

# add_second_smmu DTB: split the PCI host bridge of DTB into two, with an SMMU each. QEMU puts the
# SMMUs next to each other on its platform bus, registers and interrupts.
add_second_smmu() {
	local dtb=$1 pcie smmu pcie1 smmu1 phandle=$((0x9000)) io mem mem64 half rest its at i
	local -a cells reg irqs

	pcie=$(fdtget -l "$dtb" / | grep '^pcie@') && smmu=$(fdtget -l "$dtb" / | grep '^smmuv3@') ||
		die "QEMU's device tree has not one PCI host bridge and one SMMU"
	[[ $pcie != *$'\n'* && $smmu != *$'\n'* ]] ||
		die "QEMU's device tree has more than one PCI host bridge or SMMU"

	# the SMMU
	dt_cells "$dtb" "/$smmu" reg
	at=$(((cells[0] << 32 | cells[1]) + cells[3]))
	smmu1=/smmuv3@$(printf %x "$at")
	fdtput -c "$dtb" "$smmu1"
	dt_put "$dtb" "$smmu1" reg $((at >> 32)) $((at & 0xffffffff)) "${cells[@]:2}"
	dt_cells "$dtb" "/$smmu" interrupts
	irqs=("${cells[@]}")
	for ((i = 1; i < ${#irqs[@]}; i += 3)); do
		irqs[i]=$((irqs[i] + ${#irqs[@]} / 3))
	done
	dt_put "$dtb" "$smmu1" interrupts "${irqs[@]}"
	# shellcheck disable=SC2046
	fdtput -t s "$dtb" "$smmu1" interrupt-names $(fdtget -t s "$dtb" "/$smmu" interrupt-names)
	fdtput -t s "$dtb" "$smmu1" compatible arm,smmu-v3
	dt_put "$dtb" "$smmu1" dma-coherent
	dt_put "$dtb" "$smmu1" '#iommu-cells' 1
	dt_put "$dtb" "$smmu1" phandle "$phandle"

	# the first host bridge: fewer buses, half of the 32-bit window
	dt_cells "$dtb" "/$pcie" reg
	reg=("${cells[@]}")
	dt_put "$dtb" "/$pcie" bus-range 0 $((pxb_bus - 1))
	dt_put "$dtb" "/$pcie" reg "${reg[@]:0:2}" 0 $((pxb_bus << 20))
	dt_cells "$dtb" "/$pcie" ranges
	io=("${cells[@]:0:7}") mem=("${cells[@]:7:7}") mem64=("${cells[@]:14}")
	((mem[0] == 0x2000000 && mem[5] == 0)) || die "QEMU's device tree has no 32-bit PCI window where one was expected"
	half=$((mem[6] / 2 & ~0xfffff))
	rest=$((mem[6] - half))
	dt_put "$dtb" "/$pcie" ranges "${io[@]}" "${mem[@]:0:6}" "$half" "${mem64[@]}"

	# the second one: no I/O ports, no 64-bit window, no INTx
	at=$(((reg[0] << 32 | reg[1]) + (pxb_bus << 20)))
	pcie1=/pcie@$(printf %x "$at")
	fdtput -c "$dtb" "$pcie1"
	fdtput -t s "$dtb" "$pcie1" compatible pci-host-ecam-generic
	fdtput -t s "$dtb" "$pcie1" device_type pci
	dt_put "$dtb" "$pcie1" '#address-cells' 3
	dt_put "$dtb" "$pcie1" '#size-cells' 2
	dt_put "$dtb" "$pcie1" linux,pci-domain 1
	dt_put "$dtb" "$pcie1" bus-range "$pxb_bus" $((pxb_bus + pxb_buses - 1))
	dt_put "$dtb" "$pcie1" reg $((at >> 32)) $((at & 0xffffffff)) 0 $((pxb_buses << 20))
	dt_put "$dtb" "$pcie1" ranges "${mem[0]}" 0 $((mem[2] + half)) 0 $((mem[4] + half)) 0 "$rest"
	dt_cells "$dtb" "/$pcie" msi-map
	its=${cells[1]}
	dt_put "$dtb" "$pcie1" msi-map 0 "$its" 0 0x10000
	dt_put "$dtb" "$pcie1" iommu-map 0 "$phandle" 0 0x10000
	dt_put "$dtb" "$pcie1" dma-coherent
}
