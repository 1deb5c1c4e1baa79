#!/bin/busybox sh
# The first process of the guest that `cargo hv` boots.
/bin/busybox mkdir -p /proc /sys /dev /tmp /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=linux PS1='libhv:\w# '
echo 'libhv: userspace'
grep -q 'hv\.perf=' /proc/cmdline && [ -x /perf.sh ] && { /perf.sh; poweroff -f; }
if grep -q 'hv\.test' /proc/cmdline; then
    echo "libhv: processors $(nproc)"
    echo "libhv: clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    echo "libhv: timer interrupts $(awk '/LOC:|timer/ { n += $2 } END { print (n > 0) ? "arrive" : "missing" }' /proc/interrupts)"
    dmesg | grep -q -i -E 'unchecked MSR|Call Trace|BUG:|nobody cared' && echo 'libhv: kernel complaints'
    poweroff -f
fi
echo 'Leave with: poweroff -f'
cd /root
setsid cttyhack sh
poweroff -f
