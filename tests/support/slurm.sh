#!/usr/bin/env bash
# Real SLURM cluster on one machine for tests: two nodes with two CPUs, no systemd, no accounting, loopback only.
#   slurm.sh start FOLDER  start the daemons, with all their files in FOLDER; then export SLURM_CONF=FOLDER/slurm.conf.
#                          Daemons that an earlier start has left, because its tests were killed, are stopped before.
#   slurm.sh stop FOLDER   stop the daemons
set -euo pipefail

start() {
    local folder=$1 node
    stop "$folder"
    rm -rf "$folder"
    mkdir -p "$folder"/{state,run,log,munge,spool.n0,spool.n1}
    chmod 755 "$folder" "$folder"/*
    chmod 700 "$folder/munge"
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/run/munge.sock" --pid-file="$folder/run/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
    # JobRequeue: requeued jobs run again; KillWait: seconds between SIGTERM and SIGKILL
    cat >"$folder/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmdSpoolDir=$folder/spool.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=600
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName=n[0-1] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17000-17001] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    # submitit asks sacct for the states of jobs; without accounting, squeue answers
    cat >"$folder/sacct" <<'EOF'
#!/usr/bin/env bash
echo 'JobID|State|NodeList'
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        squeue --noheader --states=all --array --jobs="$2" --format='%i|%T|%N' 2>/dev/null
        shift
    fi
    shift
done
exit 0
EOF
    chmod +x "$folder/sacct"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -i -c
    for node in n0 n1; do slurmd -N $node; done
    for _ in $(seq 100); do
        if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ]; then return; fi
        sleep 0.2
    done
    echo "the nodes did not start; see $folder/log" >&2
    exit 1
}

stop() {
    local file pid daemon
    for file in "$1"/run/slurmctld.pid "$1"/run/slurmd.*.pid "$1"/run/munged.pid; do
        if [ ! -f "$file" ]; then continue; fi
        pid=$(cat "$file")
        rm -f "$file"
        daemon=$(basename "$file")
        # another process may have the number of a daemon that has exited
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "${daemon%%.*}" ]; then continue; fi
        kill "$pid" || true
        for _ in $(seq 100); do # its port is free once it has exited
            if ! kill -0 "$pid" 2>/dev/null || grep -qs '^State:.*zombie' "/proc/$pid/status"; then break; fi
            sleep 0.1
        done
    done
}

"$@"
