#!/bin/sh
# Runs the smoke study on a real SLURM of one node: `make slurm-test`. Needs root and Debian's packages
#   apt-get install --no-install-recommends slurm-wlm slurmd slurmctld slurm-client munge
# and is no part of the ordinary tests. The daemons listen on loopback and are ended by their own process numbers.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /tmp/roar-slurm.XXXXXX)
chmod 755 "$work"
host=$(hostname -s)
mkdir -p "$work/state" "$work/spool" "$work/log" /run/munge
printf 'ClusterName=roar
SlurmctldHost=%s(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation=%s/state
SlurmdSpoolDir=%s/spool
SlurmctldPidFile=%s/slurmctld.pid
SlurmdPidFile=%s/slurmd.pid
SlurmctldLogFile=%s/log/slurmctld.log
SlurmdLogFile=%s/log/slurmd.log
ReturnToService=2
NodeName=%s NodeAddr=127.0.0.1 CPUs=%s RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=%s Default=YES MaxTime=INFINITE State=UP
' "$host" "$work" "$work" "$work" "$work" "$work" "$work" "$host" "$(nproc)" "$host" > "$work/slurm.conf"
export SLURM_CONF="$work/slurm.conf"

stop() {
  for name in slurmd slurmctld munged; do
    [ -s "$work/$name.pid" ] && kill "$(cat "$work/$name.pid")" 2> /dev/null || true
  done
}
trap stop EXIT INT TERM

dd if=/dev/urandom of="$work/munge.key" bs=1 count=1024 2> /dev/null
chmod 400 "$work/munge.key"
chown munge: "$work/munge.key" /run/munge
mkdir -p "$work/munge" && chown munge: "$work/munge" && chmod 755 "$work/munge" /run/munge
su -s /bin/sh munge -c "exec munged --key-file=$work/munge.key --pid-file=$work/munge/munged.pid \
  --seed-file=$work/munge/seed --log-file=$work/munge/log --socket=/run/munge/munge.socket.2 --force"
cp "$work/munge/munged.pid" "$work/munged.pid"
slurmctld
slurmd
for _ in $(seq 100); do
  [ "$(sinfo -h -o %T 2> /dev/null)" = idle ] && break
  sleep 0.2
done
sinfo

printf 'jobs: 2\nmemory: 1500MB\ncores: 1\nwalltime: "00:20:00"\nscheduler-options: {host: 127.0.0.1}\n' > "$work/cluster.yaml"
export ROAR_OUTPUTS="$work/outputs"
cd "$here"
.venv/bin/roar run params/smoke.yaml --slurm "$work/cluster.yaml"
sacct -n 2> /dev/null || true
squeue
.venv/bin/roar status params/smoke.yaml
.venv/bin/roar run params/smoke.yaml --slurm "$work/cluster.yaml"
echo "SLURM test passed"
