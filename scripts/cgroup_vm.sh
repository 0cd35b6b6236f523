#!/usr/bin/env bash
# Runs tests in a virtual machine whose kernel lends memory, cpu and pids as cgroup v2, and ends with their result:
#   scripts/cgroup_vm.sh [PYTEST ARGUMENTS]     (default: the tests of the limits; make vm-cgroup)
# For Debian on amd64; needs qemu-system-x86 (emulation alone, no KVM), and apt to fetch a kernel and busybox into
# build/cgroup-vm: nothing is installed, and this machine's cgroups stay as they are. The guest sees this machine's
# files read-only (what it writes is gone with it), so it runs this checkout's own .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD vm=build/cgroup-vm patience_s=900
[ $# -gt 0 ] || set -- -q -rs --color=no tests/agent_process/test_cgroup_limits.py tests/agent_process/test_process_faults.py::test_a_group_finds_what_hides_from_everything_else
command -v qemu-system-x86_64 >/dev/null || { echo "qemu-system-x86_64 is missing: apt-get install --no-install-recommends qemu-system-x86"; exit 1; }
mkdir -p $vm
[ -e $vm/kernel ] && [ -e $vm/busybox ] || (
  cd $vm
  rm -rf ./*
  image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  apt-get download -q "${image:?apt knows no linux-image-amd64: apt-get update}" busybox-static
  dpkg -x busybox-static_*.deb tools && dpkg -x linux-image-*.deb image
  rm ./*.deb
  mv image/boot/vmlinuz-* kernel && mv tools/bin/busybox busybox
)
# The first programs: load what 9p and overlayfs need, in that order, and go over to the checkout's file system.
root=$vm/initramfs modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci netfs fscache 9pnet 9pnet_virtio 9p overlay"
rm -rf $root && mkdir -p $root/{bin,dev,proc,modules,lower,upper,root} && cp $vm/busybox $root/bin/
for module in $modules; do find $vm/image -name "$module.ko" -exec cp {} $root/modules/ \; ; done
cat > $root/init <<INIT
#!/bin/busybox sh
set -e
trap 'echo "the guest could not start"; /bin/busybox poweroff -f' EXIT
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
for module in $modules; do insmod /modules/\$module.ko; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /lower
mount -t tmpfs upper /upper && mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work all /root
mount -t proc proc /root/proc && mount -t sysfs sys /root/sys && mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/shm && mount -t tmpfs shm /root/dev/shm && mount -t tmpfs tmp /root/tmp
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
ip link set lo up
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=1
chroot /root /bin/bash /tests || true
poweroff -f
INIT
printf 'cd %q\necho "cgroup v2 with: $(cat /sys/fs/cgroup/cgroup.controllers), Linux $(uname -r)"\n.venv/bin/python -m pytest -p no:cacheprovider' "$checkout" > $root/tests
printf ' %q' "$@" >> $root/tests
printf '\necho "cgroup-vm: pytest ended with $?"\n' >> $root/tests
sed -i 's|^chroot /root|cp /tests /root/tests\n&|' $root/init && chmod +x $root/init
(cd $root && find . | ../busybox cpio -o -H newc 2>/dev/null) > $vm/initramfs.cpio
timeout $patience_s qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 2048 -nographic -no-reboot -nic none \
  -kernel $vm/kernel -initrd $vm/initramfs.cpio -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on" \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap </dev/null \
  | tee $vm/output || echo "cgroup-vm: the machine failed, or was stopped after $patience_s s"
grep -q 'cgroup-vm: pytest ended with 0' $vm/output
