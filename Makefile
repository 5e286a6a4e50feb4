# SPDX-License-Identifier: GPL-2.0-only
#
# Everything is done by tools/lab/lab; these are short names for it.

LAB := $(CURDIR)/tools/lab/lab

# Given on make's command line, these reach the lab as environment variables.
export LINUX_SRC QEMU_SRC VHOST_IOMMU_CACHE VHOST_IOMMU_DROP VHOST_IOMMU_FAULT LAB_WORK VIOMMU

# HOST in the environment may be the name of the machine; on the command line it is meant for us.
ifeq ($(origin HOST),command line)
export LAB_HOST := $(HOST)
endif

.PHONY: help
help:
	@echo 'Targets:'
	@echo '  demo           boot our kernel on emulated hosts, VT-d and SMMUv3, and show that invalidations arrive'
	@echo '  test           all tests; the last line sums up'
	@echo '  check          the tests that need no VM'
	@echo '  test-long      tests that take too long for every day'
	@echo '  bench          cost of an invalidation, in instructions'
	@echo '  flood          what a guest that posts the largest requests without pause does to others'
	@echo '  linux          make the Linux tree and build the kernels, for x86 and arm64'
	@echo '  linux-debug    the same, with KASAN, lockdep and other checkers'
	@echo '  qemu           make the QEMU tree and build it'
	@echo '  linux-edit     make a git tree of Linux to edit, one commit per patch (build/edit-linux)'
	@echo '  linux-patches  turn that tree back into files and patches of this repository'
	@echo '  qemu-edit, qemu-patches    the same for QEMU'
	@echo '  spec           check the specification and render it'
	@echo '  clean          remove what was built in this checkout (build/)'
	@echo '  distclean      remove the cache as well: downloads, trees, kernels, QEMU'
	@echo 'Variables:'
	@echo '  HOST=vtd|smmuv3            demo, bench, flood, linux: only this host, x86 with VT-d or arm64 with SMMUv3'
	@echo '                             (default: both)'
	@echo '  GUEST=1 [ARCH=x86|arm64]   demo: a guest with virtio-iommu at work, and what it asks of its IOMMU'
	@echo '                             bench: cost of dma_map and dma_unmap in a guest, and on a host'
	@echo '  FULL=1 [VIOMMU=PROPERTIES] demo: such a guest in the host HOST, with the host'"'"'s drives; properties of'
	@echo '                             its virtio-iommu, e.g. stage1=off'
	@echo '                             bench: cost of dma_map and dma_unmap there, all levels together'
	@echo '  LINUX_SRC=, QEMU_SRC=      use this tree (a directory or a tarball), not the packaged source'
	@echo '  VHOST_IOMMU_CACHE=         where trees and downloads go, shared by all clones'
	@echo '                             (default: ~/.cache/vhost-iommu)'
	@echo '  VHOST_IOMMU_DROP=1         make demo without the kick: it must fail'
	@echo 'The lab has more: tools/lab/lab help'

.PHONY: demo test check test-long bench flood qemu spec clean distclean
test check test-long flood qemu spec clean distclean:
	@$(LAB) $@
demo bench:
	@$(LAB) $@ $(if $(GUEST),--guest $(if $(filter command line,$(origin ARCH)),$(ARCH)),$(if $(FULL),$(full_$@)))
full_demo := --full
full_bench := --full

.PHONY: linux linux-debug
linux:
	@$(LAB) linux lab
linux-debug:
	@$(LAB) linux debug

.PHONY: linux-edit linux-patches qemu-edit qemu-patches
linux-edit qemu-edit:
	@$(LAB) edit $(@:-edit=)
linux-patches qemu-patches:
	@$(LAB) export $(@:-patches=)
