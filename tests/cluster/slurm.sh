#!/usr/bin/env bash
# slurm.sh - bring up, check or take down a real one-node Slurm cluster for
# tests, on loopback only, from Debian's packages, as root and without systemd.
#
#   slurm.sh [up]            install what is missing, start, wait till it runs jobs
#   slurm.sh status          exit 0 if the cluster of this script is up and healthy
#   slurm.sh down [--purge]  cancel all jobs, stop the daemons (by recorded pid),
#                               remove our files from /etc/slurm; --purge also
#                               deletes the state folder, logs included
#
# `up` may be run any number of times: a healthy cluster with the same settings is
# left alone, a sick or differently configured one is taken down and started anew
# with an empty queue.
#
# Settings (environment variables, all optional):
#   SLURM_LAB_DIR         state, logs, pids, munge key   (default /tmp/onejump-slurm)
#   SLURM_LAB_CPUS        CPUs the node declares         (default: nproc)
#   SLURM_LAB_MEM_MB      memory the node declares       (default: 90 % of MemTotal)
#   SLURM_LAB_GPUS        fake GPUs the node declares    (default 2; 0 for none)
#   SLURM_LAB_CTLD_PORT, SLURM_LAB_SLURMD_PORT           (default 6817, 6818)
#   SLURM_LAB_KILL_OVER_MEMORY=1  kill jobs that use more memory than they asked for
#   SLURM_LAB_INSTALL=0   never call apt-get: fail if a package is missing
#
# The partition `members` refuses every account, so that a test can see what a user then sees.
#
# CPUS and MEM_MB may be larger than the machine (SlurmdParameters=config_overrides),
# so a test can have, say, 8 schedulable CPUs on 2 cores.
#
# What it touches outside SLURM_LAB_DIR: the Debian packages, and
# /etc/slurm/{slurm,gres,cgroup}.conf. They have to be in /etc/slurm: Snakemake's
# slurm-jobstep executor drops SLURM_CONF from the environment of the `srun` it
# starts inside each job, so a private SLURM_CONF breaks every job.
set -euo pipefail

LAB=${SLURM_LAB_DIR:-/tmp/onejump-slurm}
CPUS=${SLURM_LAB_CPUS:-$(nproc)}
MEM_MB=${SLURM_LAB_MEM_MB:-$(awk '/^MemTotal:/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)}
GPUS=${SLURM_LAB_GPUS:-2}
CTLD_PORT=${SLURM_LAB_CTLD_PORT:-6817}
SLURMD_PORT=${SLURM_LAB_SLURMD_PORT:-6818}
KILL_OVER_MEMORY=${SLURM_LAB_KILL_OVER_MEMORY:-0}
INSTALL=${SLURM_LAB_INSTALL:-1}

CONF_DIR=/etc/slurm
MARK="# made by slurm.sh: do not edit"   # first line of every file we put there
SOCKET=$LAB/run/munge.socket
PACKAGES=(munge slurmctld slurmd slurm-client)

unset SLURM_CONF            # the caller's must not lead our clients elsewhere
export PATH=$PATH:/usr/sbin:/sbin

STARTED=0                   # 1 once `up` has begun to start daemons

say() { echo "slurm.sh: $*"; }
die() {
    echo "slurm.sh: ERROR: $*" >&2
    local log
    [ "$STARTED" = 1 ] || exit 1    # the logs would be those of an earlier run
    for log in "$LAB"/log/{munged,slurmctld,slurmd}.out; do
        [ -s "$log" ] && { echo "--- end of $log" >&2; tail -n 15 "$log" >&2; }
    done
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: poll until the command succeeds
wait_for() {
    local limit=$1 what=$2 end=$((SECONDS + $1)); shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { say "gave up after $limit s waiting for $what"; return 1; }
        sleep 0.1
    done
}

# ---------------------------------------------------------------- processes
# A pid file holds "PID STARTTIME": the start time guards against a recycled pid.
start_time() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | awk '{print $20}'; }

running_pid() {  # print the live pid of daemon $1; fail if it does not run
    local pid start state
    read -r pid start 2>/dev/null <"$LAB/run/$1.pid" || return 1
    [ -n "$pid" ] && [ "$(start_time "$pid")" = "$start" ] || return 1
    # where PID 1 reaps no orphans, a dead daemon stays as a zombie
    state=$(sed 's/^.*) //' "/proc/$pid/stat" 2>/dev/null | cut -c1)
    [ -n "$state" ] && [ "$state" != Z ] && echo "$pid"
}

start_daemon() {  # start_daemon NAME COMMAND... : in the foreground mode, as our own
    local name=$1 pid; shift
    # 9>&-: a daemon must not hold the lock of this script
    setsid "$@" >"$LAB/log/$name.out" 2>&1 </dev/null 9>&- &
    pid=$!
    disown "$pid"
    echo "$pid $(start_time "$pid")" >"$LAB/run/$name.pid"
}

stop_daemon() {
    local name=$1 pid
    if pid=$(running_pid "$name"); then
        kill -TERM "$pid" 2>/dev/null || true
        if ! wait_for 15 "the end of $name ($pid)" not running_pid "$name"; then
            say "$name ($pid) ignores SIGTERM, sending SIGKILL"
            kill -KILL "$pid" 2>/dev/null || true
            wait_for 5 "the end of $name ($pid)" not running_pid "$name" || return 1
        fi
    fi
    rm -f "$LAB/run/$name.pid"
}
not() { ! "$@"; }

# The job step daemons of our slurmd: it starts them detached, but each holds our
# slurmd log open, which tells them from anybody else's.
our_stepd_pids() {
    local proc
    for proc in /proc/[0-9]*; do
        [[ $(readlink "$proc/exe" 2>/dev/null) == */slurmstepd* ]] || continue
        if find "$proc/fd" -lname "$LAB/log/slurmd.log" 2>/dev/null | grep -q .; then
            echo "${proc#/proc/}"
        fi
    done
}

# Processes of jobs that outlived their step: a node that is lost does not end them.
our_job_pids() {
    grep -lzx 'SLURM_CLUSTER_NAME=onejumptests' /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}


family() {  # print the given pids and those of all their descendants
    local all=" $* " grew=1 pid ppid
    while [ "$grew" = 1 ]; do
        grew=0
        while read -r pid ppid; do
            [[ $all == *" $ppid "* && $all != *" $pid "* ]] || continue
            all+="$pid " grew=1
        done < <(sed -n 's/^\([0-9]*\) (.*) [A-Za-z] \([0-9]*\) .*/\1 \2/p' /proc/[0-9]*/stat 2>/dev/null)
    done
    echo "$all"
}

# ---------------------------------------------------------------- health
ctld_up() { scontrol ping 2>/dev/null | grep -q 'is UP'; }
node_state() { sinfo -h -N -n localhost -o %T 2>/dev/null | head -n 1; }
node_usable() { [[ $(node_state) =~ ^(idle|mixed|allocated|completing)$ ]]; }
munge_works() { munge -n -S "$SOCKET" | unmunge -S "$SOCKET"; }
queue_empty() { [ -z "$(squeue -h -o %i 2>/dev/null)" ]; }
healthy() {
    running_pid munged && running_pid slurmctld && running_pid slurmd &&
        munge_works && ctld_up && node_usable
} >/dev/null 2>&1

# ---------------------------------------------------------------- install
install_packages() {
    local missing=() p made_policy=0
    for p in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] ||
            missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$INSTALL" = 1 ] || die "packages missing: ${missing[*]} (apt-get install them)"
    say "installing ${missing[*]}"
    # Keep the packages' init scripts from starting daemons of their own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        made_policy=1
    fi
    # One at a time: another process may be installing Chromium.
    local apt=(flock /run/lock/onejump-packages apt-get -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3) ok=0
    export DEBIAN_FRONTEND=noninteractive
    if "${apt[@]}" install --no-install-recommends "${missing[@]}" >"$LAB/log/apt.log" 2>&1; then
        ok=1
    elif { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${missing[@]}"; } \
        >>"$LAB/log/apt.log" 2>&1; then
        ok=1
    fi
    [ "$made_policy" = 0 ] || rm -f /usr/sbin/policy-rc.d
    [ "$ok" = 1 ] || { tail -n 20 "$LAB/log/apt.log" >&2; die "apt-get failed: see $LAB/log/apt.log"; }
}

# ---------------------------------------------------------------- configuration
# With No*InAddrAny, daemons and clients bind only the address that the host's name
# resolves to. That must be 127.0.0.1 to the letter: they talk to each other from it
# (with Debian's 127.0.1.1, srun waits for ever for its own job step to call back).
choose_address() {
    ADDRESS=127.0.0.1
    if [ "$(getent ahostsv4 "$(hostname)" 2>/dev/null | awk 'NR == 1 {print $1}')" = "$ADDRESS" ]; then
        BIND=NoInAddrAny,NoCtldInAddrAny
    else
        BIND=""
        say "WARNING: the daemons will listen on every interface (munge still guards them):" \
            "for loopback alone, '127.0.0.1 $(hostname)' must be in /etc/hosts"
    fi
}

make_gpu_devices() {  # Slurm wants one character device for each GPU
    GPU_FILES=()
    local i stand_ins=(/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty)
    for ((i = 0; i < GPUS; i++)); do
        if [ -c "$LAB/dev/gpu$i" ] || mknod "$LAB/dev/gpu$i" c 1 3 2>/dev/null; then
            GPU_FILES+=("$LAB/dev/gpu$i")       # a second /dev/null
        elif [ "$i" -lt ${#stand_ins[@]} ]; then
            GPU_FILES+=("${stand_ins[i]}")      # no right to mknod: any device will do
        else
            die "cannot make $GPUS device files here, ${#stand_ins[@]} GPUs is the most"
        fi
    done
}

print_slurm_conf() {
    cat <<CONF
$MARK
ClusterName=onejumptests
SlurmctldHost=localhost($ADDRESS)
SlurmctldPort=$CTLD_PORT
SlurmdPort=$SLURMD_PORT
${BIND:+CommunicationParameters=$BIND}

# Everything as root: nothing to chown, and root may submit jobs.
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire seconds, which are 120 otherwise.
AuthInfo=socket=$SOCKET,cred_expire=15

StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool
SlurmctldPidFile=$LAB/run/slurmctld.own.pid
SlurmdPidFile=$LAB/run/slurmd.own.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true

# No cgroups, no CPU binding: neither is a given in a sandbox.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimits=NONE
MpiDefault=none

# No accounting database. Finished jobs stay in squeue --states=all for MinJobAge
# seconds, which is how Snakemake asks for them (slurm-status-command: squeue).
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=3600

# Refuse at submission what could never start, instead of leaving it pending for ever.
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PriorityType=priority/basic

# A test wants quick ends and no surprises. Only jobs submitted with --requeue are requeued.
KillWait=5
CompleteWait=0
JobRequeue=0
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
CONF
    if [ "$KILL_OVER_MEMORY" = 1 ]; then
        echo "JobAcctGatherType=jobacct_gather/linux"
        echo "JobAcctGatherFrequency=task=1"
        echo "JobAcctGatherParams=OverMemoryKill"
    else
        echo "JobAcctGatherType=jobacct_gather/none"
    fi
    [ "$GPUS" -eq 0 ] || echo "GresTypes=gpu"
    cat <<CONF

# config_overrides: believe this node line, whatever the machine has
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=$ADDRESS CPUs=$CPUS RealMemory=$MEM_MB$(
        [ "$GPUS" -eq 0 ] || echo " Gres=gpu:fake:$GPUS") State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES DefaultTime=60 MaxTime=INFINITE State=UP
PartitionName=members Nodes=localhost AllowAccounts=members State=UP
CONF
}

print_gres_conf() {
    echo "$MARK"
    local file
    for file in "${GPU_FILES[@]}"; do
        echo "NodeName=localhost Name=gpu Type=fake File=$file"
    done
}

print_cgroup_conf() {  # nothing uses cgroups; v1's plugin does not look for systemd
    printf '%s\nCgroupPlugin=cgroup/v1\n' "$MARK"
}

ours() { [ "$(head -n 1 "$1" 2>/dev/null)" = "$MARK" ]; }

# ---------------------------------------------------------------- commands
down() {
    local purge=${1:-} left name conf
    # Without munge no client gets an answer, and each would try for half a minute.
    if running_pid slurmctld >/dev/null && ours "$CONF_DIR/slurm.conf" &&
        munge_works >/dev/null 2>&1 && ctld_up; then
        squeue -h -o %i 2>/dev/null | xargs -r scancel 2>/dev/null || true
        wait_for 20 "the queue to drain" queue_empty || true
    fi
    for name in slurmd slurmctld munged; do
        stop_daemon "$name" || die "cannot stop $name"
    done
    left=$(our_stepd_pids; our_job_pids)
    if [ -n "$left" ]; then
        # shellcheck disable=SC2086
        left=$(family $left)
        say "ending left-over job processes:$left"
        # shellcheck disable=SC2086
        kill -KILL $left 2>/dev/null || true
    fi
    # A slurm.conf without a controller makes every Slurm client, and so every start
    # of Snakemake with the slurm plugin installed, wait for 9 seconds: remove it.
    for conf in slurm.conf gres.conf cgroup.conf; do
        if ours "$CONF_DIR/$conf"; then rm -f "$CONF_DIR/$conf"; fi
    done
    rm -rf "$LAB/state" "$LAB/spool" "$SOCKET" "$SOCKET.lock"
    [ "$purge" != --purge ] || rm -rf "$LAB"
}

up() {
    local name conf port began=$SECONDS
    install_packages
    for name in munged slurmctld slurmd munge mungekey sinfo squeue srun; do
        command -v "$name" >/dev/null || die "$name is not on PATH after the install"
    done
    for conf in slurm.conf gres.conf cgroup.conf; do
        [ ! -e "$CONF_DIR/$conf" ] || ours "$CONF_DIR/$conf" ||
            die "$CONF_DIR/$conf is not ours: this machine has another Slurm set-up"
    done

    choose_address
    make_gpu_devices
    print_slurm_conf >"$LAB/new/slurm.conf"
    print_gres_conf >"$LAB/new/gres.conf"
    print_cgroup_conf >"$LAB/new/cgroup.conf"

    if healthy && (cd "$LAB/new" && for conf in *.conf; do cmp -s "$conf" "$CONF_DIR/$conf" || exit 1; done); then
        say "already up"
        return 0
    fi
    down            # stops whatever is left of an earlier one; a no-op when nothing is
    for port in "$CTLD_PORT" "$SLURMD_PORT"; do
        if (exec 3<>"/dev/tcp/$ADDRESS/$port") 2>/dev/null; then
            die "port $port is taken by another process (set SLURM_LAB_CTLD_PORT / SLURM_LAB_SLURMD_PORT)"
        fi
    done
    mkdir -p "$LAB/state" "$LAB/spool" "$CONF_DIR"
    rm -f "$LAB"/log/*.log "$LAB"/log/*.out
    cp "$LAB"/new/*.conf "$CONF_DIR/"

    STARTED=1

    # munge: its own key and socket, apart from a system-wide munged. The key must
    # belong to the user that runs munged and be closed to all others.
    [ -s "$LAB/munge/munge.key" ] ||
        mungekey --create --keyfile="$LAB/munge/munge.key" || die "mungekey failed"
    chmod 600 "$LAB/munge/munge.key"
    start_daemon munged munged --foreground \
        --key-file="$LAB/munge/munge.key" --seed-file="$LAB/munge/munged.seed" \
        --socket="$SOCKET" --pid-file="$LAB/run/munged.own.pid" \
        --log-file="$LAB/log/munged.log" --origin=127.0.0.1
    wait_for 10 "munged" munge_works || die "munged does not answer"

    start_daemon slurmctld slurmctld -D -c      # -c: start with an empty queue
    wait_for 20 "slurmctld" ctld_up || die "slurmctld does not answer"
    start_daemon slurmd slurmd -D
    wait_for 20 "the node" node_usable ||
        die "the node is '$(node_state)': $(sinfo -h -R -o '%E' 2>/dev/null)"

    # The proof: a job through every part, with a GPU where there are any.
    local ask=(-n1 --mem=10 --time=1)
    [ "$GPUS" -eq 0 ] || ask+=(--gpus=1)
    timeout 30 srun --quiet "${ask[@]}" true || die "a test job (srun ${ask[*]} true) failed"
    say "up after $((SECONDS - began)) s: $(sinfo -h -o 'partition %P: %D node, %c CPUs, %m MB, gres %G, %T')"
    say "logs in $LAB/log; take it down with: $0 down"
}

[ "$(id -u)" = 0 ] || { echo "slurm.sh: ERROR: must run as root" >&2; exit 1; }
[[ $LAB == /* && $LAB != / ]] || { echo "slurm.sh: ERROR: SLURM_LAB_DIR must be an absolute path" >&2; exit 1; }
for n in "$CPUS" "$MEM_MB" "$GPUS" "$CTLD_PORT" "$SLURMD_PORT"; do
    [[ $n =~ ^[0-9]+$ ]] || { echo "slurm.sh: ERROR: not a number: '$n'" >&2; exit 1; }
done
umask 022
# munged refuses a key or socket below a folder that others may write to, unless sticky
mkdir -p "$LAB"/{run,log,new,dev,munge}
chmod 700 "$LAB/munge"
exec 9>"$LAB.lock"      # outside of LAB, which --purge removes
flock -w 120 9 || die "another $0 has been running for two minutes"

case ${1:-up} in
    up) up ;;
    down) down "${2:-}"; say "down" ;;
    status) if healthy; then say "up: node $(node_state)"; else say "not up"; exit 1; fi ;;
    *) echo "usage: $0 [up | down [--purge] | status]" >&2; exit 2 ;;
esac
