#!/bin/busybox sh
# Runs what hv.perf=NAME on the kernel's command line names, and powers off:
#   stat     counts the loop of known length and compares; hv.turns=N, and hv.exits=K for K forced exits on the way
#   record   samples the loop each hv.period=N instructions, and says how many samples lie in it
#   bench    times the mixed workload of hv.turns=N without perf and with `perf record -F hv.rate=`, 6 and 10 events
#   profile  `perf stat`, `perf record` and `perf report` for people
# hv.event=NAME takes another event than instructions. Lines for other programs begin with `libhv: perf `.
turns=10000000 exits= period=100000 rate=1000 event=instructions perf=
for word in $(cat /proc/cmdline); do
    case $word in
        hv.*=*) word=${word#hv.}; eval "${word%%=*}='${word#*=}'" ;;
    esac
done
export PATH=/bin HOME=/tmp PAGER=cat
cd /tmp
echo -1 > /proc/sys/kernel/perf_event_paranoid
echo 0 > /proc/sys/kernel/kptr_restrict
echo 0 2>/dev/null > /proc/sys/kernel/nmi_watchdog
echo 100 > /proc/sys/kernel/perf_cpu_time_max_percent
echo "libhv: perf version $(perf --version)"
dmesg | grep -E 'Performance Events|tsc: Detected' | sed 's/^\[[^]]*\] */libhv: perf driver: /'

# The number of interrupts of one kind that all processors have had: NMI, PMI, LOC.
interrupts() { awk -v name="$1:" '$1 == name { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }' /proc/interrupts; }

# The number after the word $1 in what the workload said, without the zeros that awk would take for an octal mark.
said() { awk -v name="$1" '{ for (i = 1; i < NF; i++) if ($i == name) { n = $(i + 1); sub(/^0+/, "", n); print n } }' said; }

# The count of event $1 in what perf stat wrote.
counted() { awk -F, -v name="$1" '$3 == name { print $1 }' counts; }

# Says how the count of event $1 compares with $2.
judge() {
    count=$(counted "$1")
    case $count in
        "$2") echo "libhv: perf $1 $count is exact" ;;
        [0-9]*) echo "libhv: perf $1 $count is not $2: $((count - $2)) more"; cat said ;;
        *) echo "libhv: perf $1 ${count:-is missing}" ;;
    esac
}

count() {
    perf stat -x, -o counts -e instructions:u,branches:u,cycles:u workload "$@" > said
    echo "libhv: perf stat of workload $*"
    judge instructions:u "$(said instructions)"
    # SYSCALL is a far branch.
    judge branches:u "$(($(said branches) + $(said syscalls)))"
    echo "libhv: perf cycles:u $(counted cycles:u)"
}

stat() {
    count loop "$turns"
    [ -n "$exits" ] && count exits "$turns" "$exits"
    perf stat -x, -o counts -e r11c4:u workload loop "$turns" > said
    judge r11c4:u "$(said conditional)"
}

record() {
    before=$(interrupts PMI)
    perf record -q -e "$event:u" -c "$period" -o data workload loop "$turns" > said
    after=$(interrupts PMI)
    perf script -i data -F ip,sym > samples
    awk '/./ { all++ } $2 == "hot_loop" { hot++ } END { printf "libhv: perf samples %d in the loop %d\n", all, hot }' samples
    awk '/./ { all++ } $2 == "hot_loop" { hot++ } END { exit !(all > 0 && hot * 100 >= all * 95) }' samples \
        && echo 'libhv: perf samples lie in the loop'
    echo "libhv: perf samples expected $(($(said instructions) / period))"
    echo "libhv: perf record took PMIs $((after - before))"
}

# Times the mixed workload under the command that is given, as $1.
timed() {
    name=$1; shift
    before=$(interrupts PMI)
    "$@" workload mixed "$turns" > said 2> errors
    echo "libhv: perf ticks-$name $(said ticks)"
    echo "libhv: perf pmis-$name $(($(interrupts PMI) - before))"
}

# $1 times the event, with commas between.
events() { awk -v n="$1" -v e="$event" 'BEGIN { for (i = 1; i <= n; i++) printf "%s%s", e, i < n ? "," : "" }'; }

bench() {
    workload mixed 100000 > /dev/null
    timed none
    for number in 6 10; do
        timed "$number-events" perf record -q -F "$rate" -e "$(events $number)" -a --overwrite -o data
    done
}

profile() {
    perf stat workload loop "$turns"
    perf record -F "$rate" -e "$event" -o data workload mixed "$((turns / 4))"
    perf report --stdio -i data --sort comm,sym 2>/dev/null | grep -v '^$' | head -40
}

case $perf in
    stat|record|bench|profile) "$perf" ;;
    *) echo "libhv: perf has no script $perf" ;;
esac
# What the kernel has against the PMU: unchecked accesses are to its registers, by their numbers.
dmesg | grep -E 'unchecked MSR.* 0x(c[1-8]|18[6-9a-d]|30[9abc]|345|38[d-f]|39[0-2]|3f1|4c[1-8]|600) |WARNING:|BUG:|perfevents: irq loop' \
    | sed 's/^/libhv: kernel complaint: /'
echo "libhv: perf NMIs $(interrupts NMI)"
echo "libhv: perf PMIs $(interrupts PMI)"
# The serial line is slower than the power switch.
sleep 0.1
poweroff -f
