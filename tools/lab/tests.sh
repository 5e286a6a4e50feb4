# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Stages of make check, make test and make test-long, and what they run.

out=$repo/build
results=$out/test

check_stages=(lab patches_linux patches_qemu spec spec_selftest spec_html checkpatch_linux checkpatch_qemu kernel_doc units
	unit_faults neutral sparse arm64)
vm_stages=(trees full_trees qtests qemu_faults faults mock_debug_arm64 dma_debug dma_debug_smmuv3 iommufd_debug_arm64
	mock dma dma_smmuv3 dma_smmuv3_noril dma_smmuv3_two erratum iommufd iommufd_arm64
	guest guest_arm64 guest_kunit guest_kunit_arm64 guest_levels guest_groups full_vtd full_smmuv3
	demo demo_drop bench flood splats full_splats)
# Most of their time is one CPU's, or a wait for the emulated device: two run at a time. demo, bench and flood
# have two VMs each.
parallel_stages=(checkpatch_linux checkpatch_qemu kernel_doc qtests qemu_faults
	faults mock_debug mock_debug_arm64 dma_debug dma_debug_smmuv3 iommufd_debug iommufd_debug_arm64
	guest_debug guest_debug_arm64 mock dma dma_smmuv3 dma_smmuv3_noril dma_smmuv3_two erratum iommufd iommufd_arm64
	guest guest_arm64 guest_kunit guest_kunit_arm64 guest_levels guest_groups guest_granules peers peers_arm64
	guest_long guest_long_arm64 full_vtd full_smmuv3 full_stock_vtd full_stock_smmuv3 full_mixed_vtd full_mixed_smmuv3
	full_smmuv3_two full_modes_vtd full_modes_smmuv3 full_debug_vtd full_debug_smmuv3 full_counts_vtd full_counts_smmuv3
	full_switches_vtd full_switches_smmuv3 full_long_vtd full_long_smmuv3)
long_stages=(mock_debug iommufd_debug fail_nth guest_trees guest_faults guest_debug guest_debug_arm64 guest_granules
	long_splats peers peers_arm64 guest_long guest_long_arm64 full_trees stock_trees full_stock_vtd full_stock_smmuv3
	full_mixed_vtd full_mixed_smmuv3 full_smmuv3_two full_modes_vtd full_modes_smmuv3 full_counts_vtd full_counts_smmuv3
	full_switches_vtd full_switches_smmuv3 full_bytes full_debug_vtd full_debug_smmuv3 full_long_vtd full_long_smmuv3
	full_splats)
all_stages=("${check_stages[@]}" "${vm_stages[@]}" "${long_stages[@]}")

# run_stages STAGE...: each as a test run of its own, then the sum
run_stages() {
	local stage running=0 rc=0

	need_packages test
	rm -rf "$results"
	mkdir -p "$results"
	for stage; do
		stage=${stage//-/_}
		if [[ " ${parallel_stages[*]} " == *" $stage "* ]]; then
			if ((running == 2)); then
				wait -n || true
				running=1
			fi
			running=$((running + 1))
			# a process group of its own, to be ended as a whole
			set -m
			run_stage "$stage" &
			set +m
		else
			wait
			running=0
			run_stage "$stage"
		fi
	done
	wait
	"$lab/ktap" summary --dir "$results" | tee >(tail -n 1 >"$results/summary") || rc=1
	return "$rc"
}

run_stage() {
	"$lab/ktap" run --stage "${1//_/-}" --dir "$results" -- "$lab/lab" stage "$1" || true
}

lab_check() {
	(($#)) || set -- "${check_stages[@]}"
	run_stages "$@"
}

lab_test() {
	(($#)) || set -- "${check_stages[@]}" "${vm_stages[@]}"
	run_stages "$@"
}

lab_test_long() {
	(($#)) || set -- "${long_stages[@]}"
	run_stages "$@"
}

# lab stage NAME: run one stage, KTAP on stdout, everything else on stderr
lab_stage() {
	local stage=${1:-}

	stage=${stage//-/_}
	declare -F "check_$stage" >/dev/null || die "there is no stage '$stage'" \
		"Stages: ${all_stages[*]}"
	need_packages test
	"check_$stage"
}

# --- programs that run in the VM ---

# build_programs ARCH: selftests (ours and the kernel's), demo, bench and flood, static, in $bin
build_programs() {
	local dir log selftests

	build_headers "$1" || return 1
	log=$cache/logs/$work_name-programs$arch_suffix.log
	bin=$out/bin$arch_suffix
	selftests=$out/selftests$arch_suffix
	lock "$out/lock$arch_suffix" "the test programs"
	mkdir -p "$bin"
	for dir in vhost_iommu virtio_iommu iommu; do
		[[ -d $tree/tools/testing/selftests/$dir ]] || continue
		mkdir -p "$selftests/$dir"
		# LDLIBS: libcap is all that they want, and tools/lab/include stands in for it
		quietly "$log" make -C "$tree/tools/testing/selftests/$dir" "${arch_make[@]}" OUTPUT="$selftests/$dir" \
			-j"$jobs" KHDR_INCLUDES="-isystem $headers/usr/include -isystem $lab/include" \
			LDFLAGS=-static LDLIBS= all || return 1
		find "$selftests/$dir" -maxdepth 1 -type f -executable -exec cp -p {} "$bin/" \;
	done
	quietly "$log" make -C "$repo/tools/vhost-iommu" "${arch_make[@]}" HDR="$headers/usr/include" OUT="$bin" -j"$jobs" ||
		return 1
	release
}

quietly() {
	local log=$1
	shift

	"$@" >"$log" 2>&1 </dev/null && return 0
	echo "lab: this failed: $*" >&2
	tail -n 30 "$log" >&2
	return 1
}

lab_programs() {
	local h

	need_packages
	wanted_hosts
	for h in "${wanted[@]}"; do
		select_host "$h"
		build_programs "$arch" || exit 1
		note "programs: $bin"
	done
}

# --- demo and bench ---

# lab demo [--guest [ARCH] | --full [HOST]]
lab_demo() {
	local options=(--timeout 300)

	if [[ ${1:-} == --guest ]]; then
		demo_guest "${2:-x86}"
		return
	elif [[ ${1:-} == --full ]]; then
		wanted_hosts
		demo_full "${2:-${wanted[0]}}"
		return
	fi
	[[ ! ${VHOST_IOMMU_DROP:-} ]] || options+=(--env "VHOST_IOMMU_DROP=$VHOST_IOMMU_DROP")
	[[ ! ${VHOST_IOMMU_FAULT:-} ]] || options+=(--env "VHOST_IOMMU_FAULT=$VHOST_IOMMU_FAULT")
	on_hosts demo "${options[@]}" "$@"
}

# demo_guest ARCH: a guest at work, and what that asks of its IOMMU
demo_guest() {
	local log=$out/demo.guest-$1.log rc=0
	local -a trace

	[[ " ${guests[*]} " == *" guest-$1 "* ]] || die "lab demo --guest $1: there is no such guest" \
		"There are: ${guests[*]#guest-}"
	need_packages
	plan 4
	select_host "guest-$1"
	build_qemu || die "QEMU was not built"
	build_linux "$(machine_kind lab)" || die "the kernel was not built"
	step "programs: for $arch"
	build_programs "$arch" || die "the programs were not built for $arch"
	step "running a guest for $arch: files and blocks of NVMe drives"
	trace_requests
	lab_run --quiet --guest "$1" --log "$log" "${trace[@]}" \
		"$bin/guest_storage" --then "$bin/guest_counters" >"$log.out" || rc=$?
	echo "the kernel's log:"
	grep -E 'iommu: |virtio_iommu|virtio-iommu|VIOT' "$log" | sed 's/^/    /' || true
	echo "the programs, the last one prints the driver's counters:"
	sed 's/^/    /' "$log.out"
	echo "requests that QEMU saw:"
	count_requests "$log.trace" | sed 's/^/    /'
	return "$rc"
}

# demo_full HOST: the same in a guest that HOST runs, with HOST's drives. VIOMMU has more properties for the guest's
# virtio-iommu.
demo_full() {
	local log=$out/demo.full-$1.log event rc=0
	local -a trace

	[[ " ${hosts[*]} " == *" $1 "* ]] || die "lab demo --full $1: there is no such host" "There are: ${hosts[*]}"
	need_packages
	plan 5
	select_host "$1"
	build_qemu || die "QEMU was not built"
	build_qemu_static "$arch" || die "the static QEMU was not built"
	build_linux "$(machine_kind lab)" || die "the kernel was not built"
	step "programs: for $arch"
	build_programs "$arch" || die "the programs were not built for $arch"
	step "running a guest in the host $1: files and blocks of NVMe drives"
	trace_requests
	for event in request flush error; do
		trace+=(--host-write "$events/vhost_iommu_$event/enable=1")
	done
	lab_run --quiet --full "$1" --timeout 900 --log "$log" "${trace[@]}" --viommu "${VIOMMU:-}" \
		--host-write /sys/kernel/tracing/buffer_size_kb=16384 --host-copy /sys/kernel/tracing/trace \
		"$bin/guest_storage" --then "$bin/guest_counters" >"$log.out" || rc=$?
	echo "the host's kernel log, of its IOMMU:"
	grep -E 'DMAR: (Intel|IOMMU|PMR)|arm-smmu-v3 |kvm|vhost|iommufd' "$log.host" | sed 's/^/    /' || true
	echo "the guest's kernel log:"
	grep -E 'iommu: |virtio_iommu|virtio-iommu|VIOT' "$log" | sed 's/^/    /' || true
	echo "the guest's programs, the last one prints the driver's counters:"
	sed 's/^/    /' "$log.out"
	echo "requests that the guest's QEMU saw:"
	touch "$log.trace"
	count_requests "$log.trace" | sed 's/^/    /'
	echo "requests that vhost-iommu saw in the host's kernel:"
	count_taken "$log.copies" | sed 's/^/    /'
	return "$rc"
}

events=/sys/kernel/tracing/events/vhost_iommu

# count_taken TRACE: by the tracepoints of vhost-iommu
count_taken() {
	[[ -f $1 ]] || set -- /dev/null
	awk '
		$0 !~ /^#/ && match($0, / vhost_iommu_(request|flush|error): /) {
			name = substr($0, RSTART + 13, RLENGTH - 15)
			count[name]++
			if (match($0, / nr=[0-9]+/))
				descriptors += substr($0, RSTART + 4, RLENGTH - 4)
			if (match($0, / entries=[0-9]+/))
				entries += substr($0, RSTART + 9, RLENGTH - 9)
		}
		/^# entries-in-buffer/ && match($0, /[0-9]+\/[0-9]+/) {
			split(substr($0, RSTART, RLENGTH), n, "/")
			lost += n[2] - n[1]
		}
		END {
			if (!count["request"]) {
				print "none"
				exit
			}
			printf "INVALIDATE    %d, descriptors %d\n", count["request"], descriptors
			printf "flushes       %d, entries %d\n", count["flush"], entries
			printf "errors        %d\n", count["error"]
			if (lost)
				printf "lost          %d: the trace buffer was too small\n", lost
		}' "$1"
}

guest_requests=(attach attach_table detach detach_table map unmap invalidate)

# trace_requests: sets trace, options of lab run by which a guest's QEMU traces its requests
trace_requests() {
	local event

	trace=(--trace "virtio_iommu_${guest_requests[0]}")
	for event in "${guest_requests[@]:1}"; do
		trace+=(--qemu-arg -trace --qemu-arg "virtio_iommu_$event")
	done
}

# count_requests TRACE
count_requests() {
	awk '
		{
			name = $1
			sub(/.*virtio_iommu_/, "", name)
			count[name]++
			if (name == "invalidate") {
				sub(/.* nr=/, "")
				descriptors += $1
			}
		}
		END {
			n = split("attach detach map unmap attach_table detach_table invalidate", order)
			for (i = 1; i <= n; i++)
				if (count[order[i]])
					printf "%-13s %d\n", toupper(order[i]), count[order[i]]
			if (count["invalidate"])
				printf "descriptors   %d, %.2f for each INVALIDATE\n", descriptors, descriptors / count["invalidate"]
			else if (count["attach_table"])
				print "no INVALIDATE: the queues for them are not served by QEMU"
			else
				print "no INVALIDATE: domains of this guest are changed by MAP and UNMAP"
		}' "$1"
}

# lab bench [--guest [ARCH] | --full [HOST]]
lab_bench() {
	if [[ ${1:-} == --guest ]]; then
		bench_guest "${2:-}"
		return
	elif [[ ${1:-} == --full ]]; then
		wanted_hosts
		[[ ! ${2:-} ]] || wanted=("$2")
		bench_full
		return
	fi
	on_hosts bench --timeout 600 "$@"
}

# lab flood [ARGUMENT]...
lab_flood() {
	on_hosts flood --timeout 900 "$@"
}

# bench_guest [ARCH]: what dma_map and dma_unmap cost a guest's kernel, and that of a host with its
# vendor's IOMMU. The clock counts instructions of the kernel's CPUs; what the device does is not in it.
# With threads, where it goes eight times as fast, a second of benchmark takes an eighth of the time: the
# tick comes more often then, which is the same for all rows of a table.
bench_guest() {
	local arches=(x86 arm64) a h i mode some='$1 == 1 || $2 == 8'
	local -a names options

	[[ ! $1 ]] || arches=("$1")
	need_packages
	plan $((1 + 12 * ${#arches[@]}))
	build_qemu || die "QEMU was not built"
	for a in "${arches[@]}"; do
		[[ " ${guests[*]} " == *" guest-$a "* ]] || die "lab bench --guest $a: there is no such guest" \
			"There are: ${guests[*]#guest-}"
		for h in "${hosts[@]}"; do
			select_host "$h"
			[[ $arch != "$a" ]] || break
		done
		build_programs "$a" || die "dma_bench was not built for $a"
		names=("$h, its own driver" "virtio-iommu, stage-1 table" "virtio-iommu, MAP and UNMAP")
		options=("--host $h" "--guest $a --viommu check=off"
			"--guest $a --viommu stage1=off,check=off")

		printf '%s: instructions of the kernel, one CPU and one thread\n' "$a"
		printf '%-30s %-6s %9s %9s %9s %9s\n' "" "" "map 1" "unmap 1" "map 16" "unmap 16"
		for i in "${!names[@]}"; do
			for mode in strict lazy; do
				bench_run "$a: ${names[i]}, $mode" "$mode" 1 1 "${options[i]}"
				bench_row "${names[i]}" "$mode" 1 '$3, $4'
			done
		done
		printf '\n%s: instructions of 8 CPUs together for a map and an unmap, by threads\n' "$a"
		printf '%-30s %-6s %9s %9s %9s %9s %9s\n' "" "" 1 2 4 8 "8, of 16"
		for i in "${!names[@]}"; do
			for mode in strict lazy; do
				bench_run "$a: ${names[i]}, $mode, threads" "$mode" 8 1,2,4,8 \
					"${options[i]} --qemu-arg -icount --qemu-arg shift=3"
				bench_row "${names[i]}" "$mode" "$some" 'int($6 / 8)'
				if [[ ${names[i]} == *stage-1* ]]; then
					bench_row "  descriptors per request" "$mode" "$some" 'sprintf("%.2f", $7 ? $8 / $7 : 0)'
				fi
			done
		done
		printf '\n'
	done
}

# full_rows HOST: sets names and options, of the rows of its table and for lab run
full_rows() {
	local h=$1

	names=("$h alone, its own driver" "MAP and UNMAP" "table, vhost=off" "table, vhost=on, worker"
		"table, vhost=on, inline")
	options=("--host $h" "--full $h --viommu stage1=off,num-invalqs=1 --vhost off"
		"--full $h --vhost off" "--full $h --vhost on --viommu vhost-mode=worker"
		"--full $h --vhost on --viommu vhost-mode=inline")
	if [[ $h == vtd ]]; then
		names+=("  the same, kick by MMIO" "emulated VT-d")
		options+=("--full $h --vhost on --viommu vhost-mode=inline,pio-notify=off" "--full $h --vendor")
	fi
}

# bench_full: the same in a guest that a host runs, with a device of the host. Here the clock counts the
# instructions of the guest, of the host's kernel and of its QEMU.
bench_full() {
	local h i mode steps=1
	local -a names options

	need_packages
	for h in "${wanted[@]}"; do
		[[ " ${hosts[*]} " == *" $h "* ]] || die "lab bench --full $h: there is no such host" "There are: ${hosts[*]}"
		full_rows "$h"
		steps=$((steps + 2 * ${#names[@]} + 2 * ${#switches_modes[@]}))
	done
	plan "$steps"
	build_qemu || die "QEMU was not built"
	for h in "${wanted[@]}"; do
		select_host "$h"
		build_programs "$arch" || die "dma_bench was not built for $arch"
		full_rows "$h"
		printf '%s: instructions of all levels, one CPU and one thread; long: more than 30000\n' "$h"
		printf '%-26s %-6s %8s %8s %8s %8s %8s %8s %6s %8s %8s %8s\n' "" "" "map 1" "unmap 1" "map 16" "unmap 16" \
			"map 256" "unm 256" "long 1" "rest 1" "max 1" "pairs 1"
		for i in "${!names[@]}"; do
			for mode in strict lazy; do
				bench_run "$h: ${names[i]}, $mode" "$mode" 1 1 "${options[i]}" 1,16,256
				bench_full_row "${names[i]}" "$mode"
			done
		done
		printf '\n'
		switches_table "$h"
	done
}

# bench_full_row NAME MODE
bench_full_row() {
	printf '%-26s %-6s' "$1" "$2"
	awk '/^ *[0-9]/ {
			printf " %8d %8d", $3, $4
			if ($1 == 1)
				one = sprintf(" %6d %8d %8d %8d", $9, $10, $11, $5)
		}
		END { print one }' "$out/dma_bench.$arch.out"
}

switches_modes=(worker worker,vhost-poll-us=200 inline auto)

# switches_table HOST: who serves the invalidations of a guest, and how often a thread of its VMM is switched meanwhile
switches_table() {
	local mode threads

	printf '%s: strict, one page; per request, one vCPU (instructions counted) and four (not counted)\n' "$1"
	printf '%-28s %5s %10s %10s %10s %10s %10s %10s\n' "" vCPUs requests "per kick" "descs" "flushes" "worker's" switches
	for threads in 1 4; do
		for mode in "${switches_modes[@]}"; do
			step "$1: $mode, $threads threads"
			watched_run "$1" "$mode" "$threads" >"$out/watched.out" ||
				die "dma_bench failed" "$(<"$out/watched.out")"
			switches_row "$mode" "$threads" "$out/watched.out" ||
				die "vhost-iommu was never busy" "$(<"$out/watched.out")"
		done
	done
	printf '\n'
}

# watched_run HOST MODE[,PROPERTIES] THREADS: one thread on one CPU that counts instructions, or several on as many CPUs
watched_run() {
	local -a options=(--smp "$3")

	select_host "$1"
	build_programs "$arch" >&2 || die "the test programs were not built"
	(($3 > 1)) || options+=(--icount)
	lab_run --quiet --full "$1" --vhost on --viommu "vhost-mode=$2" --append iommu.strict=1 --timeout 900 \
		--host-program "$bin/vmm_watch" "${options[@]}" "$bin/dma_bench" -t "$3" -g 1 -s "$3"
}

# switches_row MODE THREADS FILE
switches_row() {
	awk -v mode="$1" -v threads="$2" '
		/^# vmm_watch: / {
			for (i = 3; i < NF; i += 2)
				n[$i] = $(i + 1)
			requests = n["worker"] + n["inline"] + n["polled"]
		}
		END {
			if (!requests || !n["kicks"])
				exit 1
			printf "%-28s %5d %10d %10.2f %10.2f %10.2f %9.1f%% %10.4f\n", mode, threads, requests,
				requests / n["kicks"], n["descs"] / requests, (n["ranges"] + n["wide"]) / requests,
				100 * (n["worker"] + n["polled"]) / requests, (n["voluntary"] + n["involuntary"]) / requests
		}' "$3"
}

# lab profile [HOST [PROPERTIES]]: where the instructions of a strict unmap of one page go, from the guest's driver to the
# host's
lab_profile() {
	local h=${1:-vtd} properties=${2:-vhost-mode=inline} log=$out/profile.${1:-vtd} rc=0 taker sock

	[[ " ${hosts[*]} " == *" $h "* ]] || die "lab profile $h: there is no such host" "There are: ${hosts[*]}"
	need_packages
	plan 4
	select_host "$h"
	build_qemu || die "QEMU was not built"
	build_qemu_static "$arch" || die "the static QEMU was not built"
	build_linux "$(machine_kind lab)" || die "the kernel was not built"
	build_programs "$arch" || die "dma_bench was not built for $arch"
	step "tracing a guest in the host $h: vhost=on,$properties"
	rm -f "$log".*
	sock=$(mktemp -u "${TMPDIR:-/tmp}/profile.XXXXXX")
	"$lab/profile" take --monitor "$sock" --output "$log.out" --trace "$log.insns" &
	taker=$!
	lab_run --quiet --full "$h" --icount --edu 1 --smp 1 --vhost on --viommu "$properties" --append iommu.strict=1 \
		--timeout 1800 --host-qemu-arg -chardev --host-qemu-arg "socket,id=profile,path=$sock,server=on,wait=off" \
		--host-qemu-arg -mon --host-qemu-arg chardev=profile,mode=readline --host-copy /proc/kallsyms \
		--log "$log.log" "$bin/dma_bench" -g 1 -s 5 >"$log.out" || rc=$?
	((rc == 0)) || kill "$taker" 2>/dev/null
	wait "$taker" || die "there is no trace" "$(<"$log.out")"
	rm -f "$sock"
	"$lab/profile" count --arch "$arch" --trace "$log.insns" --build "$kernel_build" --kallsyms "$log.log.copies" --inside "${INSIDE:-}"
	rm -f "$log.insns"
}

# A kernel seeds its random numbers anew at 1, 2, 3, 4.5, 6.75 ... 22.8 and 34.2 seconds, and does more at the
# first: benchmarks begin between the last two. Where instructions are counted, waiting costs next to nothing.
settled_s=25

# bench_run NAME strict|lazy CPUS THREADS OPTIONS [GRANULES]: fills dma_bench.ARCH.out
bench_run() {
	step "$1"
	# shellcheck disable=SC2086 # options are words
	lab_run --quiet --icount --edu 1 --smp "$3" --append "iommu.strict=$([[ $2 == strict ]] && echo 1 || echo 0)" \
		--timeout 900 $5 "$bin/dma_bench" -w "$settled_s" -t "$4" -g "${6:-1,16}" >"$out/dma_bench.$arch.out" ||
		die "dma_bench failed" "$(<"$out/dma_bench.$arch.out")"
}

# bench_row NAME MODE CONDITION COLUMNS: a row, of the lines of dma_bench.ARCH.out for which awk's CONDITION holds
bench_row() {
	local -a values

	mapfile -t values < <(awk "/^ *[0-9]/ && ($3) { print $4 }" "$out/dma_bench.$arch.out" | tr ' ' '\n')
	printf '%-30s %-6s' "$1" "$2"
	printf ' %9s' "${values[@]}"
	printf '\n'
}

# on_hosts PROGRAM OPTION...: run it on the wanted hosts, side by side, and merge what it prints. Lines
# that begin with "= " are for tools/lab/columns, the others for people.
on_hosts() {
	local program=$1 h rc=0 status files=()
	local -A pid=()
	shift

	need_packages
	wanted_hosts
	plan $((1 + 3 * ${#wanted[@]}))
	build_qemu || die "QEMU was not built"
	for h in "${wanted[@]}"; do
		select_host "$h"
		build_linux "lab$arch_suffix" || die "the kernel of $h was not built"
		step "programs: $program, for $arch"
		build_programs "$arch" || die "$program was not built for $arch"
	done
	rm -f "$out/$program".*.{out,err,log}
	for h in "${wanted[@]}"; do
		select_host "$h"
		step "running $program on $h"
		set -m
		LAB_WORK=$work_name "$lab/lab" run --quiet --host "$h" --icount --edu 2 --hugepages 64 \
			--log "$out/$program.$h.log" "$@" "$out/bin$arch_suffix/$program" \
			>"$out/$program.$h.out" 2>"$out/$program.$h.err" &
		set +m
		pid[$h]=$!
	done
	for h in "${wanted[@]}"; do
		status=0
		wait "${pid[$h]}" || status=$?
		sed "s/^lab: /lab: $h: /" "$out/$program.$h.err" >&2
		((rc)) || rc=$status
		files+=("$h=$out/$program.$h.out")
	done
	if ((${#wanted[@]} == 1)); then
		grep -v '^= ' "${files[0]#*=}" || true
	fi
	if [[ -x $lab/columns ]]; then
		"$lab/columns" "$program" "${files[@]}" || ((rc)) || rc=1
	elif ((${#wanted[@]} > 1)); then
		for h in "${files[@]}"; do
			echo "${h%%=*}:"
			cat "${h#*=}"
		done
	fi
	return "$rc"
}

lab_spec() {
	make --no-print-directory -C "$repo/spec" OUT="$out/spec" lint html
}

# --- stages with a VM ---

# All that the VM stages need, so that each one's time is its own.
check_trees() {
	build_trees "${kinds[@]}"
}

check_guest_trees() {
	build_trees guest-debug guest-debug-arm64 guest-16k-arm64 guest-64k-arm64
}

# What runs in the host of a full stack
check_full_trees() {
	tap_plan 2
	tap_loud "the static QEMU for x86" build_qemu_static x86
	tap_loud "the static QEMU for arm64" build_qemu_static arm64
}

# Hosts with a kernel that has nothing of ours
check_stock_trees() {
	tap_plan 2
	tap_loud "the lab kernel without anything of ours" build_stock lab
	tap_loud "the lab-arm64 kernel without anything of ours" build_stock lab-arm64
}

build_stock() {
	local work_name=$stock

	build_linux "$1"
}

build_trees() {
	local kind

	tap_plan $((3 + $#))
	tap_loud "QEMU and its tests" build_qemu tests
	for kind; do
		tap_loud "the $kind kernel" build_linux "$kind"
	done
	tap_loud "programs for x86" build_programs x86
	tap_loud "programs for arm64" build_programs arm64
}

# tap_loud NAME COMMAND...: as tap_run, but what COMMAND says is shown at once
tap_loud() {
	local name=$1
	shift

	tap_count=$((tap_count + 1))
	if "$@" >&2; then
		echo "ok $tap_count - $name"
	else
		echo "not ok $tap_count - $name"
	fi
}

# Each program waits for a QEMU most of the time, and has one at a time: two at a time, and then their
# results one after the other.
check_qtests() {
	local test dir running=0
	local -a tests

	build_qemu tests >&2 || die "QEMU was not built"
	make_roms "$qemu_build/qemu-bundle/usr/local/share/qemu"
	scratch dir
	mapfile -t tests < <(qemu_qtests)
	for test in "${tests[@]}"; do
		if ((running == 2)); then
			wait -n || true
			running=1
		fi
		running=$((running + 1))
		run_qtest "$test" >"$dir/$test" 2>"$dir/$test.err" &
	done
	wait
	for test in "${tests[@]}"; do
		cat "$dir/$test"
		cat "$dir/$test.err" >&2
	done
	tap_plan 1
	tap_skip "QEMU's own tests of arm-smmuv3" "it has only a functional test, which boots an image from the network"
}

# A QEMU in its build directory looks for firmware there only. The NIC among the default devices wants
# an option ROM: one that does nothing.
make_roms() {
	local file

	mkdir -p "$1"
	for file in /usr/share/seabios/*.bin /usr/share/qemu/*.bin; do
		ln -sf "$file" "$1/"
	done
	for file in "$1"/efi-{e1000e,virtio}.rom; do
		printf '\x55\xaa\x01\xcb' >"$file"
		truncate -s 512 "$file"
	done
}

# Of QEMU's qos-test only what is about virtio-iommu. It knows the device on the machines pc and virt, of
# which the lab's QEMU has virt.
qos_path=/aarch64/virt/generic-pcihost/pci-bus-generic/pci-bus/virtio-iommu-pci

run_qtest() {
	case $1 in
	qos-test) qtest "$1" --tap -k -r "$qos_path" | some_of "virtio-iommu-tests" || true ;;
	*) qtest "$1" --tap -k || ended_with "$1" "$?" ;;
	esac
}

# ended_with TEST STATUS: a failed test, unless the status only says that a test has failed
ended_with() {
	(($2 == 1)) || printf '1..1\nnot ok 1 - %s ended with status %s\n' "$1" "$2"
}

# some_of TEXT: TAP with its plan at the head, which GLib puts at the end when it was given a prefix; a failed
# test if no test named so has passed
some_of() {
	awk -v text="$1" '/^1\.\.[0-9]+$/ { plan = $0; next }
		{ line[n++] = $0 }
		/^ok / && index($0, text) { seen = 1 }
		END {
			print seen ? plan : "1..1"
			for (i = 0; i < n; i++)
				print (seen || line[i] ~ /^#/ ? "" : "# ") line[i]
			if (!seen)
				print "not ok 1 - no test of " text " has passed"
		}'
}

# qtest_host TEST: the host whose QEMU a test is for
qtest_host() {
	case $1 in
	arm-* | qos-test) echo smmuv3 ;;
	*) echo vtd ;;
	esac
}

qtest() {
	local test=$1
	shift

	select_host "$(qtest_host "$test")"
	env -C "$qemu_build" QTEST_QEMU_BINARY="./$host_qemu" timeout -k 5 900 "./tests/qtest/$test" "$@" </dev/null
}

# vm_programs STAGE OPTIONS... -- PROGRAM...: what the programs print is the stage's result
vm_programs() {
	local stage=$1 program host=vtd bin
	local -a options=() programs=() words
	shift

	while [[ $1 != -- ]]; do
		[[ $1 != --host ]] || host=$2
		[[ $1 != --guest ]] || host=guest-$2
		[[ $1 != --full ]] || host=$2
		options+=("$1")
		shift
	done
	shift
	select_host "$host"
	build_programs "$arch" >&2 || die "the test programs were not built"
	for program; do
		read -r -a words <<<"$program"
		[[ -x $bin/${words[0]} ]] || die "there is no program ${words[0]}" \
			"It should come from tools/testing/selftests."
		((${#programs[@]} == 0)) || programs+=(--then)
		programs+=("$bin/${words[0]}" "${words[@]:1}")
	done
	lab_run --log "$results/$stage.console" "${options[@]}" "${programs[@]}"
}

check_mock() {
	vm_programs mock --edu 0 --timeout 600 -- iommufd_inval vhost_iommu_mock
}

# Seconds for a VM with a debug kernel, on a machine that has other things to do
debug_limit=1800

check_mock_debug() {
	vm_programs mock-debug --kernel debug --edu 0 --leaks --timeout "$debug_limit" -- iommufd_inval vhost_iommu_mock
}

check_mock_debug_arm64() {
	vm_programs mock-debug-arm64 --host smmuv3 --kernel debug --edu 0 --leaks --timeout "$debug_limit" -- \
		iommufd_inval vhost_iommu_mock
}

# The tables that devices take on the one host and on the other: the tests' variants.
x86_tables='-v x86_64'
arm_tables='-v arm_4k -v arm_16k -v arm_64k'

check_dma() {
	vm_programs dma --icount --edu 2 --hugepages 64 -- "vhost_iommu_dma $x86_tables"
}

check_dma_debug() {
	vm_programs dma-debug --kernel debug --icount --edu 2 --hugepages 64 --leaks --timeout "$debug_limit" \
		--env VHOST_IOMMU_MODE=worker -- \
		"vhost_iommu_dma $x86_tables"
}

check_dma_smmuv3() {
	vm_programs dma-smmuv3 --host smmuv3 --icount --edu 2 --hugepages 64 -- "vhost_iommu_dma $arm_tables"
}

# Without range invalidation each page is a command; and the small ASIDs.
check_dma_smmuv3_noril() {
	vm_programs dma-smmuv3-noril --host smmuv3 --smmu ril=off,asid-bits=8 --icount --edu 2 --hugepages 64 \
		--env VHOST_IOMMU_MODE=worker -- \
		"vhost_iommu_dma $arm_tables"
}

# Two SMMUs, one for each device.
check_dma_smmuv3_two() {
	vm_programs dma-smmuv3-two --host smmuv3 --smmus 2 --icount --edu 2 --hugepages 64 -- \
		"vhost_iommu_dma $arm_tables"
}

check_dma_debug_smmuv3() {
	vm_programs dma-debug-smmuv3 --host smmuv3 --kernel debug --icount --edu 2 --hugepages 64 --leaks \
		--timeout "$debug_limit" -- "vhost_iommu_dma -v arm_4k"
}

# The same tests with and without the SMMU's erratum: with it, each TLBI and each CFGI_CD is issued twice.
check_erratum() {
	local erratum program="vhost_iommu_dma -r dma.arm_4k.range_of_pages -r dma.arm_4k.domain -r dma.arm_4k.replace"

	tap_plan 5
	for erratum in "" --smmu-erratum; do
		tap_run "the tests pass${erratum:+ with $erratum}" vm_programs "erratum$erratum" \
			--host smmuv3 $erratum --icount --edu 2 --hugepages 64 --trace 'smmuv3_cmdq_opcode' -- "$program"
	done
	for program in TLBI_NH_VA TLBI_NH_ASID CFGI_CD; do
		tap_run "$program is issued twice" twice_as_often "$program" \
			"$results/erratum.console.trace" "$results/erratum--smmu-erratum.console.trace"
	done
}

# twice_as_often COMMAND LOG LOG: in the second log
twice_as_often() {
	local once twice

	once=$(grep -c -w "SMMU_CMD_$1" "$2" || true)
	twice=$(grep -c -w "SMMU_CMD_$1" "$3" || true)
	echo "$1: $once without the erratum, $twice with it"
	((once > 0 && twice == 2 * once))
}

# The kernel's own tests of iommufd, on our kernel.
check_iommufd() {
	vm_programs iommufd --edu 0 --hugepages 300 --mem 3G --timeout 300 -- iommufd
}

check_iommufd_arm64() {
	vm_programs iommufd-arm64 --host smmuv3 --edu 0 --hugepages 300 --mem 3G --timeout 300 -- iommufd
}

# These tests give themselves 30 s, which for one with 128 MiB of bits is not enough on every machine: their clock
# counts instructions.
check_iommufd_debug() {
	vm_programs iommufd-debug --kernel debug --icount --edu 0 --hugepages 300 --mem 3G --timeout "$debug_limit" -- \
		iommufd
}

check_iommufd_debug_arm64() {
	vm_programs iommufd-debug-arm64 --host smmuv3 --kernel debug --icount --edu 0 --hugepages 300 --mem 3G \
		--timeout "$debug_limit" -- iommufd
}

check_fail_nth() {
	vm_programs fail-nth --kernel debug --edu 0 --hugepages 300 --mem 3G --timeout 3600 -- iommufd_fail_nth
}

# --- guests ---

# What the endpoints of a guest have, when nothing else is asked for
declare -A guest_formats=([x86]="x86-64 4 48" [arm64]="arm64 4 48")

# guest_works STAGE ARCH TABLES OPTIONS...: the endpoints of a guest have these tables and work, with strict
# and with lazy invalidation. What pulls devices out of ports is
# last, see tools/lab/splat.
guest_works() {
	local stage=$1 arch=$2 formats="guest_formats $3" rc=0
	shift 3

	vm_programs "$stage-strict" --guest "$arch" --edu 2 --append iommu.strict=1 "$@" -- "$formats" guest_storage \
		guest_network guest_vfio guest_tables || rc=$?
	vm_programs "$stage-lazy" --guest "$arch" --append iommu.strict=0 "$@" -- "$formats" guest_storage \
		guest_network guest_tables guest_stress guest_hotplug || rc=$?
	return "$rc"
}

# guest STAGE ARCH OPTIONS...: and it may reboot. On arm64 without LPIs: the tables of the GIC's redistributors stay
# where they are over kexec, and only EFI can keep the next kernel from that memory.
guest() {
	local stage=$1 arch=$2 rc=0
	local -A lpis=([arm64]="--append irqchip.gicv3_nolpi=1")
	shift 2

	guest_works "$stage" "$arch" "${guest_formats[$arch]}" "$@" || rc=$?
	# shellcheck disable=SC2086 # two words, or none
	vm_programs "$stage-reboot" --guest "$arch" --reboots ${lpis[$arch]:-} "$@" -- "guest_reboot reboot kexec" || rc=$?
	return "$rc"
}

guest_logs=(guest{,-arm64}-{strict,lazy,reboot} guest-kunit{,-arm64} guest-levels guest-groups-{0,1})

check_guest() {
	guest guest x86 --timeout 300
}

check_guest_arm64() {
	guest guest-arm64 arm64 --timeout 300
}

check_guest_long() {
	guest guest-long x86 --timeout 3000 --env GUEST_SCALE=10
}

check_guest_long_arm64() {
	guest guest-long-arm64 arm64 --timeout 3000 --env GUEST_SCALE=10
}

# The guest's driver without any device: KUnit tests, as a module that nothing else loads. Some of them
# want four CPUs.
kunit_suites=(viommu_desc viommu_domain viommu_format viommu_invalq)

guest_kunit() {
	vm_programs "$1" --guest "$2" --smp 4 --edu 0 --module virtio-iommu-kunit "${@:3}" -- \
		"guest_kunit ${kunit_suites[*]}"
}

# Without a TSC, the scheduler's clock stands still while the driver waits with interrupts off.
check_guest_kunit() {
	guest_kunit guest-kunit x86 --append tsc=unstable
}

check_guest_kunit_arm64() {
	guest_kunit guest-kunit-arm64 arm64
}

check_guest_debug() {
	guest_debug guest-debug x86
}

check_guest_debug_arm64() {
	guest_debug guest-debug-arm64 arm64
}

guest_debug() {
	guest "$@" --kernel debug --mem 1G --leaks --timeout "$debug_limit"
}

# Tables of 5 levels. The DMA API takes addresses from their upper end, which no table of 4 reaches.
check_guest_levels() {
	vm_programs guest-levels --guest x86 --append "iommu.strict=1 iommu.forcedac=1 viommu_stage1.five_level=1" \
		--timeout 300 -- "guest_formats x86-64 4 57" guest_storage guest_vfio
}

# Kernels with larger pages, whose tables have granules as large.
check_guest_granules() {
	local granule rc=0

	for granule in 16 64; do
		guest_works "guest-granules-$granule" arm64 "arm64 $granule 48" --kernel "${granule}k" --timeout 1800 || rc=$?
	done
	return "$rc"
}

# Functions of one device, in one group, and the IOMMU offers no tables for one of them: they share a domain,
# which has none then.
check_guest_groups() {
	local edu=edu,dma_mask=0xffffffffffff,bus=pcie.0 at=1e function rc=0

	for function in 0 1; do
		vm_programs "guest-groups-$function" --guest x86 --edu 0 --append iommu.strict=1 \
			--viommu "x-map-endpoint=$((0x$at << 3 | function))" --timeout 300 \
			--qemu-arg -device --qemu-arg "$edu,addr=$at.0,multifunction=on" \
			--qemu-arg -device --qemu-arg "$edu,addr=$at.1" \
			--env "GUEST_EDU=0000:00:$at.$((1 - function))" -- \
			"guest_formats ${guest_formats[x86]} 0000:00:$at.0 0000:00:$at.1" guest_vfio || rc=$?
	done
	return "$rc"
}

# --- guests in hosts ---

# What the endpoints of a guest have, by the host that they come from, and what a guest cannot be told there
declare -A full_formats=([vtd]="x86-64 4 48" [smmuv3]="arm64 4 48")
declare -A full_options=([vtd]="--env NO_FAULTS=1" [smmuv3]="")

# full_run STAGE HOST on|off MODE OPTIONS... -- PROGRAM...: in a guest with the host's devices, with vhost=on or off,
# strict or lazy
full_run() {
	local stage=$1 host=$2 vhost=$3 mode=$4
	local -a options
	shift 4

	read -r -a options <<<"${full_options[$host]}"
	options+=(--append "iommu.strict=$([[ $mode == strict ]] && echo 1 || echo 0)")
	vm_programs "$stage-$vhost-$mode" --full "$host" --vhost "$vhost" --viommu stage1=required --edu 2 --timeout 1200 \
		"${options[@]}" "$@"
}

# full STAGE HOST on|off MODE OPTIONS...: the host's devices work in a guest. guest_load is first: vmm_kill waits for it.
full() {
	local -a programs=("guest_load 5" "guest_formats ${full_formats[$2]}" guest_storage guest_network guest_vfio guest_tables)

	[[ $4 == strict ]] || programs+=(guest_hotplug)
	full_run "$@" -- "${programs[@]}"
}

# bound_as FORMAT TRACE: each table was bound for invalidations in this one, generic=1 or that of the vendor, generic=0
bound_as() {
	awk -v format="$1" '/virtio_iommu_host_bind / { all++; good += $NF == format }
		END { print good + 0, "of", all + 0, "are", format; exit !(all && good == all) }' "$2"
}

# On a kernel without anything of ours, QEMU translates invalidations into the vendor's format.
full_stock() {
	local h=$1 stage=full-stock-$1 mode rc=0

	for mode in strict lazy; do
		full "$stage" "$h" off "$mode" --host-work "$stock" --trace virtio_iommu_host_bind || rc=$?
	done
	tap_plan 3
	for mode in strict lazy; do
		tap_run "$mode: QEMU has invalidated in the vendor's format" bound_as generic=0 "$results/$stage-off-$mode.console.trace"
	done
	tap_run "vhost=on says what this kernel lacks" vhost_missing "$stage-on" "$h" "$stock"
	return "$rc"
}

check_full_stock_vtd() {
	full_stock vtd
}

check_full_stock_smmuv3() {
	full_stock smmuv3
}

# vhost_missing STAGE HOST KERNEL: QEMU ends, and says why and what to do
vhost_missing() {
	local said=$results/$1.said text

	if vm_programs "$1" --full "$2" --vhost on --host-work "$3" --timeout 600 -- guest_storage >"$said" 2>&1; then
		echo "the guest has run"
		return 1
	fi
	for text in "vhost=on: Could not open '/dev/vhost-iommu': No such file or directory" "use vhost=off" \
		"the guest's QEMU has ended with status 1"; do
		grep -q -F -- "$text" "$said" || { echo "it does not say: $text"; tail -n 20 "$said"; return 1; }
	done
}

# together TRACE ENDPOINT ENDPOINT: have these two been in one domain with a table at a time? By requests for it: what
# an endpoint was in before, it leaves.
together() {
	awk -v a="$2" -v b="$3" '
		function value(name, text) {
			text = $0
			return sub(".* " name "=", "", text) ? text + 0 : ""
		}
		/virtio_iommu_(attach|detach|attach_table|detach_table) / && value("status") + 0 == 0 {
			endpoint = value("endpoint")
			in_table[endpoint] = /virtio_iommu_attach_table / ? value("domain") : ""
			met += in_table[a] != "" && in_table[a] == in_table[b]
		}
		END { exit !met }' "$1" && return
	echo "by $1, endpoints $2 and $3 were in no domain together"
	return 1
}

# given_back TRACE: QEMU gives back what it makes for tables. iommufd takes the lowest ID that is free: no HWPT has one
# above what the devices take at a time, which is less than ten objects each.
given_back() {
	awk '/virtio_iommu_host_attach_hwpt / {
			devices += !seen[$2]++
			sub("hwpt=", "", $3)
			if ($3 + 0 > highest)
				highest = $3 + 0
		}
		END {
			print "the highest ID of an HWPT is", highest + 0, "with", devices + 0, "devices"
			exit !(devices && highest < 10 * devices)
		}' "$1"
}

# edu_rid NUMBER: the requester ID of this edu device of a guest
edu_rid() {
	echo $(((edu_slot + $1) << 3))
}

# full_mixed HOST: devices of the host, emulated ones and one without tables behind one virtio-iommu. The last edu device
# is the one without tables, one of the host or an emulated one.
#
# guest_vfio has all edu devices reach the same, with an emulated one (strict) or one of the host (lazy) to begin with.
# An emulated device takes tables with larger addresses than the host's may: they can share a domain only if it was
# made for one of the host.
full_mixed() {
	local h=$1 stage=full-mixed-$1 edus=3 run stage1 rc=0
	local -A emulates=([on-strict]=edu1,raw [off-strict]=edu1,edu3,raw [on-lazy]=edu2,edu3,raw [off-lazy]=edu2)
	local -a programs more

	programs=("guest_formats ${full_formats[$h]} $(printf '0000:00:%x.0' $((edu_slot + edus)))" guest_storage
		guest_network guest_vfio guest_tables)
	for run in on-strict off-strict on-lazy off-lazy; do
		more=()
		[[ $run == *-strict ]] || more=(guest_hotplug)
		# a device of the host without tables is refused where they are required
		stage1=$([[ ,${emulates[$run]}, == *,edu$edus,* ]] && echo required || echo on)
		full_run "$stage" "$h" "${run%-*}" "${run#*-}" --edu "$edus" --emulated "${emulates[$run]}" \
			--trace 'virtio_iommu_*tach*' --viommu "stage1=$stage1,x-map-endpoint=$(edu_rid "$edus")" -- \
			"${programs[@]}" "${more[@]}" || rc=$?
	done
	tap_plan 6
	for run in on-lazy off-lazy; do
		tap_run "$run: a device of the host and an emulated one have shared a domain" \
			together "$results/$stage-$run.console.trace" "$(edu_rid 1)" "$(edu_rid 2)"
	done
	for run in on-strict off-strict on-lazy off-lazy; do
		tap_run "$run: no object for a table is left" given_back "$results/$stage-$run.console.trace"
	done
	return "$rc"
}

check_full_mixed_vtd() {
	full_mixed vtd
}

check_full_mixed_smmuv3() {
	full_mixed smmuv3
}

# Two devices of a guest, each behind an SMMU of its own, in domains of their own and in one for both: an invalidation
# of that is for two SMMUs. QEMU's machines for x86 have one VT-d.
check_full_smmuv3_two() {
	local stage=full-smmuv3-two formats="guest_formats ${full_formats[smmuv3]}" rc=0
	local -a options=(--smmus 2 --trace 'virtio_iommu_*tach*' --qemu-arg -trace --qemu-arg virtio_iommu_host_can)

	full_run "$stage" smmuv3 on strict "${options[@]}" -- "$formats" guest_storage guest_vfio guest_tables || rc=$?
	full_run "$stage" smmuv3 off lazy "${options[@]}" -- "$formats" guest_storage guest_vfio guest_tables || rc=$?
	tap_plan 6
	for stage in $stage-on-strict $stage-off-lazy; do
		tap_run "$stage: a device is behind the second SMMU" grep -q "virtio_iommu_host_can $pxb_endpoint: " \
			"$results/$stage.console.trace"
		tap_run "$stage: devices behind two SMMUs have shared a domain" together "$results/$stage.console.trace" \
			"$(edu_rid 1)" "$(edu_rid 2)"
		tap_run "$stage: no object for a table is left" given_back "$results/$stage.console.trace"
	done
	return "$rc"
}

# Each way by which the host's kernel serves the queues
full_modes() {
	local h=$1 stage=full-modes-$1 mode rc=0

	for mode in worker inline auto; do
		full_run "$stage-$mode" "$h" on strict --viommu "stage1=required,vhost-mode=$mode" \
			--host-write "$events/vhost_iommu_request/enable=1" \
			--host-write /sys/kernel/tracing/buffer_size_kb=16384 --host-copy /sys/kernel/tracing/trace -- \
			"guest_formats ${full_formats[$h]}" guest_storage guest_network guest_vfio guest_tables guest_hotplug || rc=$?
	done
	tap_plan 3
	for mode in worker inline auto; do
		tap_run "$mode: it is who has served the queues" served "$mode" "$results/$stage-$mode-on-strict.console.copies"
	done
	return "$rc"
}

# served MODE TRACE: the worker alone, or mostly the threads that kick
served() {
	awk -v mode="$1" '/ vhost_iommu_request: / { by[$NF]++ }
		END {
			worker = by["by=worker"] + 0
			inline = by["by=inline"] + 0
			print worker, "requests by the worker,", inline, "inline"
			exit mode == "worker" ? !worker || inline : worker >= inline
		}' "$2"
}

check_full_modes_vtd() {
	full_modes vtd
}

check_full_modes_smmuv3() {
	full_modes smmuv3
}

# The host has a debug kernel.
full_debug() {
	local h=$1 stage=full-debug-$1 mode rc=0
	local -a options=(--host-kernel debug --timeout 4800)

	full_kill "$stage-inline" "$h" 5 "${options[@]}" --viommu stage1=required,vhost-mode=inline || rc=$?
	full "$stage-worker" "$h" on strict "${options[@]}" --viommu stage1=required,vhost-mode=worker || rc=$?
	tap_plan 2
	for mode in inline worker; do
		tap_run "$mode: no splat in the host" "$lab/splat" "$results/$stage-$mode-on-strict.console.host"
	done
	return "$rc"
}

check_full_debug_vtd() {
	full_debug vtd
}

check_full_debug_smmuv3() {
	full_debug smmuv3
}

check_full_vtd() {
	full_kill full-vtd vtd 5
}

check_full_smmuv3() {
	full_kill full-smmuv3 smmuv3 5
}

# full_long STAGE HOST: what full_kill leaves out, and that MAP and UNMAP work
full_long() {
	local rc=0

	full "$1" "$2" on lazy || rc=$?
	full "$1" "$2" off strict || rc=$?
	full "$1" "$2" off lazy --trace virtio_iommu_host_bind || rc=$?
	vm_programs "$1-map-unmap" --full "$2" --viommu stage1=off,num-invalqs=1 --vhost off --timeout 900 -- \
		guest_storage guest_network || rc=$?
	full_kill "$1-kill" "$2" 100 || rc=$?
	tap_plan 1
	tap_run "QEMU has invalidated in the generic format" bound_as generic=1 "$results/$1-off-lazy.console.trace"
	return "$rc"
}

check_full_long_vtd() {
	full_long full-long-vtd vtd
}

check_full_long_smmuv3() {
	full_long full-long-smmuv3 smmuv3
}

check_full_counts_vtd() {
	full_counts vtd
}

check_full_counts_smmuv3() {
	full_counts smmuv3
}

# full_kill STAGE HOST TIMES OPTIONS...: guests at work whose QEMU is killed leave nothing, and all works in the next one
full_kill() {
	local stage=$1 host=$2 times=$3 bin
	shift 3

	select_host "$host"
	bin=$out/bin$arch_suffix
	build_programs "$arch" >&2 || die "the test programs were not built"
	full "$stage" "$host" on strict --host-program "$bin/vmm_kill $times" --timeout $((1200 + 150 * times)) "$@"
}

# With vhost=on, QEMU sees no invalidation, and vhost-iommu each one that the guest has counted.
full_counts() {
	local h=$1 stage=full-counts-$1 mode strict

	tap_plan 6
	for mode in strict lazy; do
		strict=$([[ $mode == strict ]] && echo 1 || echo 0)
		tap_run "$mode: a drive works" counted_run "$stage-$mode" "$h" "$strict"
		tap_run "$mode: QEMU has seen no invalidation" qemu_saw_none "$results/$stage-$mode.console.trace"
		tap_run "$mode: vhost-iommu has carried out what the guest has counted" same_count "$results/$stage-$mode"
	done
}

counted_run() {
	local -a trace

	trace_requests
	vm_programs "$1" --full "$2" --vhost on --append "iommu.strict=$3" --timeout 600 "${trace[@]}" \
		--host-write "$events/vhost_iommu_request/enable=1" --host-write "$events/vhost_iommu_error/enable=1" \
		--host-write /sys/kernel/tracing/buffer_size_kb=16384 --host-copy /sys/kernel/tracing/trace -- \
		guest_storage guest_counters >"$results/$1.out"
}

# It must have seen something, or the trace is not what it should be.
qemu_saw_none() {
	grep -q virtio_iommu_attach_table "$1" || { echo "$1 has no ATTACH_TABLE"; return 1; }
	! grep -m 3 virtio_iommu_invalidate "$1"
}

# same_count RUN: requests by the guest's counters and by the host's trace
same_count() {
	local guest host

	guest=$(awk '/queues: [0-9]+ (alive|dead) / { n += $4 } END { print n + 0 }' "$1.out")
	host=$(count_taken "$1.console.copies" | awk '/^INVALIDATE/ { print $2 + 0 } /^lost/ { print "lost " $2 }')
	echo "guest: $guest, host: $host"
	[[ $guest -gt 0 && $guest == "$host" ]]
}

# Served inline, invalidations switch no thread of the VMM. That a worker's do shows that switches are seen.
full_switches() {
	local mode

	tap_plan 4
	for mode in inline worker; do
		tap_run "$mode: a guest unmaps" watched_into "$results/full-switches-$1-$mode.out" "$1" "$mode"
	done
	tap_run "inline: at most one switch for a hundred requests" \
		switches_are "<= 0.01" "$results/full-switches-$1-inline.out"
	tap_run "worker: at least one switch for each request" switches_are ">= 1" "$results/full-switches-$1-worker.out"
}

watched_into() {
	watched_run "$2" "$3" 1 >"$1"
}

# switches_are CONDITION FILE
switches_are() {
	local row

	row=$(switches_row mode 1 "$2") || { echo "vhost-iommu was never busy"; return 1; }
	echo "for each request: ${row##* }"
	awk -v n="${row##* }" "BEGIN { exit !(n $1) }"
}

check_full_switches_vtd() {
	full_switches vtd
}

check_full_switches_smmuv3() {
	full_switches smmuv3
}

# What the guest's driver puts on its queue, for one script, is the same whatever the host's IOMMU is.
check_full_bytes() {
	local h files=()

	tap_plan $((${#hosts[@]} + 1))
	for h in "${hosts[@]}"; do
		tap_run "the script has run on $h" script_bytes "$h"
		files+=("$results/full-bytes.$h")
	done
	tap_run "the queue held the same bytes, on ${hosts[*]}" same_bytes "${files[@]}"
}

# The requests for domain 48 (0x30), which is guest_script's
script_bytes() {
	vm_programs "full-bytes-$1" --full "$1" --vhost on --append iommu.strict=1 --timeout 600 \
		--host-write "$events/vhost_iommu_take/enable=1" \
		--host-write /sys/kernel/tracing/buffer_size_kb=16384 --host-copy /sys/kernel/tracing/trace -- guest_script
	awk '/ vhost_iommu_take: / {
			offset = data = $0
			sub(/.* offset=/, "", offset)
			sub(/.* data=/, "", data)
			if (offset + 0 == 0)
				head = data
			else if (data ~ /^30000000/)
				print head, data
		}' "$results/full-bytes-$1.console.copies" >"$results/full-bytes.$1"
}

same_bytes() {
	echo "# $(wc -l <"$1") requests, sha256 $(sha256sum <"$1" | cut -c1-16)..."
	(($(wc -l <"$1") > 300)) || { echo "there are too few"; return 1; }
	diff -u "$1" "$2" | head -n 40
	cmp -s "$1" "$2"
}

# Who knows nothing of stage 1: Debian's kernels on our QEMU, our kernel on Debian's QEMU.
peers() {
	local arch=$1 kernel

	tap_plan $((${#debian_kernels[@]} + 1))
	for kernel in "${debian_kernels[@]}"; do
		tap_run "Linux $(pin_version "$kernel-$arch") on our QEMU" \
			vm_programs "peers-$arch-$kernel" --guest "$arch" --kernel "$kernel" --edu 0 -- guest_storage
	done
	tap_run "our Linux on Debian's QEMU $(dpkg-query -W -f '${Version}' qemu-system-common)" \
		vm_programs "peers-$arch-qemu" --guest "$arch" --qemu debian --edu 0 -- guest_storage
}

check_peers() {
	peers x86
}

check_peers_arm64() {
	peers arm64
}

# No splat in the logs of the debug kernel and of guests; and a real one, made on purpose, is seen.
check_splats() {
	local stage h log

	tap_plan $((4 + ${#guest_logs[@]} + 2 * ${#hosts[@]}))
	for stage in mock-debug-arm64 dma-debug dma-debug-smmuv3 iommufd-debug-arm64 "${guest_logs[@]}"; do
		tap_run "no splat in $stage" "$lab/splat" "$results/$stage.console"
	done
	for h in "${hosts[@]}"; do
		log=$results/seeded-$h.console
		compile_true "$h"
		tap_loud "$h: a VM with a seeded splat runs to its end" lab_run --host "$h" --kernel debug --edu 0 \
			--log "$log" --write /sys/kernel/debug/provoke-crash/DIRECT=READ_AFTER_FREE "$bin/true"
		tap_run "$h: the seeded splat is found" found_kasan "$log"
	done
}

long_logs=(mock-debug iommufd-debug guest-debug{,-arm64}-{strict,lazy,reboot} guest-granules-{16,64}-{strict,lazy})

# That real ones are seen is for the stage splats to show.
check_long_splats() {
	local log

	tap_plan ${#long_logs[@]}
	for log in "${long_logs[@]}"; do
		tap_run "no splat in $log" "$lab/splat" "$results/$log.console"
	done
}

# The logs of all guests in hosts that have run, and of these hosts
check_full_splats() {
	local log logs=()

	for log in "$results"/full-*.console{,.host}; do
		[[ ! -f $log ]] || logs+=("$log")
	done
	((${#logs[@]})) || die "no full stack has run before" "Run e.g. tools/lab/lab test-long full-vtd full-splats."
	tap_plan ${#logs[@]}
	for log in "${logs[@]}"; do
		tap_run "no splat in ${log##*/}" "$lab/splat" "$log"
	done
}

found_kasan() {
	if "$lab/splat" "$1" >"$1.splats"; then
		echo "splat found nothing in $1"
		return 1
	fi
	grep -q 'BUG: KASAN: ' "$1.splats"
}

compile_true() {
	select_host "$1"
	bin=$out/bin$arch_suffix
	mkdir -p "$bin"
	echo 'int main(void) { return 0; }' | "${arch_cross}gcc" -x c -static -o "$bin/true" -
}

check_demo() {
	tap_plan 1
	tap_run "make demo: every row is right, on each host" lab_demo
}

# Without the kick nothing may be right that expects NEW: a demo that cannot fail proves nothing.
check_demo_drop() {
	local rc=0

	tap_plan 2
	VHOST_IOMMU_DROP=1 lab_demo >"$results/demo-drop.out" || rc=$?
	cat "$out"/demo.*.out >>"$results/demo-drop.out"
	tap_run "make demo fails if no invalidation is posted" test "$rc" = 1
	tap_run "no row says that it saw NEW" no_row_is_right "$results/demo-drop.out"
}

no_row_is_right() {
	cat "$1"
	! grep -E 'NEW .*(right|ok|PASS)' "$1"
}

check_bench() {
	local run

	tap_plan 3
	for run in 1 2; do
		tap_run "bench, run $run" bench_into "$results/bench.$run"
	done
	tap_run "two runs print the same numbers" diff -u "$results/bench.1" "$results/bench.2"
}

# The program's own checks, on each host
check_flood() {
	local h rc=0

	lab_flood >&2 || rc=$?
	tap_plan $((${#hosts[@]} + 1))
	for h in "${hosts[@]}"; do
		tap_run "$h: a flood is bounded, and all of it was measured" flood_is_good "$out/flood.$h.out"
	done
	tap_run "make flood says so" test "$rc" = 0
}

# flood_is_good FILE
flood_is_good() {
	grep -E '^(not )?ok ' "$1"
	grep -q -x '= end' "$1" && ! grep -q '^not ok' "$1"
}

bench_into() {
	local rc=0

	lab_bench >"$1" || rc=$?
	cat "$out"/bench.*.out >>"$1"
	return "$rc"
}

# Seeded faults in QEMU's virtio-iommu device.
check_qemu_faults() {
	build_qemu tests >&2 || die "QEMU was not built"
	make_roms "$qemu_build/qemu-bundle/usr/local/share/qemu"
	TREE=$tree BUILD=$qemu_build OUT=$out/qemu-faults "$repo/tools/testing/faults/run-qemu"
}

check_faults() {
	LAB=$lab/lab OUT=$out/faults "$repo/tools/testing/faults/run"
}

check_guest_faults() {
	local a

	for a in x86 arm64; do
		build_programs "$a" >&2 || die "the test programs were not built for $a"
	done
	LAB=$lab/lab OUT=$out/faults "$repo/tools/testing/faults/run" --guests
}
