#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --chdir={{ here | directive }}
#SBATCH --output={{ output | directive }}
#SBATCH --open-mode=append
{% if runs %}
#SBATCH --array={{ tasks }}
{% endif %}
#SBATCH --nodes={{ resources.nodes }}
#SBATCH --ntasks-per-node={{ resources.processes }}
{% if resources.gpus_per_node %}
#SBATCH --gpus-per-node={{ resources.gpus_per_node }}
{% endif %}
#SBATCH --cpus-per-task={{ resources.cpus }}
#SBATCH --mem={{ resources.memory_per_node }}G
{% if resources.time %}
#SBATCH --time={{ resources.time }}
{% endif %}
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ resources.save_seconds }}
{% for option in resources.options %}
#SBATCH {{ option }}
{% endfor %}

# {{ command }}
#
# SLURM sends USR1 to this shell {{ resources.save_seconds }} seconds before the time limit, and TERM at a
# preemption. The run saves and ends, the job is requeued, and these lines go on with the run.

{% if runs %}
case $SLURM_ARRAY_TASK_ID in
{% for run, settings in runs %}
  {{ loop.index0 }}) run={{ run | word }} settings=({{ settings | words }}) ;;
{% endfor %}
esac
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # SLURM_JOB_ID of one of the tasks names them all
starts={{ jobs | word }}/starts-$SLURM_ARRAY_TASK_ID
{% else %}
run={{ folder | word }}
job=$SLURM_JOB_ID
starts={{ jobs | word }}/starts
{% endif %}

newest() { ls "$run/checkpoints" 2> /dev/null | tail -n 1; }
echo "$(newest)" >> "$starts"
echo "Start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $job on $SLURM_JOB_NODELIST, $(date)"

# Rank 0 is on the first node, where this shell runs.
MASTER_ADDR=$(scontrol --oneliner show node "$SLURMD_NODENAME" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE={{ resources.processes }} OMP_NUM_THREADS={{ resources.cpus }}
export SRUN_CPUS_PER_TASK={{ resources.cpus }} # since SLURM 22.05 srun does not take it from the job

stop= step=
trap 'stop=yes; kill -USR1 $step 2> /dev/null' USR1 TERM
srun --wait=120 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' rank \
  {{ python | word }} -m sfumato train {{ arguments | words }} --out "$run"{{ ' "${settings[@]}"' if runs }} &
step=$!
wait $step
status=$?
while kill -0 $step 2> /dev/null; do # a signal, which may come twice, has ended the wait
  wait $step
  status=$?
done
{% if runs %}
{{ python | word }} -m sfumato submit results {{ folder | word }}
{% endif %}
if [ $status -eq 0 ]; then
  exit 0
fi

# SLURM itself requeues a job that it preempts or whose node is lost, and ends one that is cancelled.
state=$(squeue --noheader --jobs="$job" --format=%T)
if [ "$state" != RUNNING ]; then
  echo "SLURM ends job $job (${state:-not in the queue})."
elif [ "$(tail -n 3 "$starts" | grep -cxF "$(newest)")" -ge 3 ]; then
  echo "Three starts of job $job have saved nothing: it is not requeued."
elif [ $stop ] || [ $status -ge 4 ]; then # 1 to 3: an error that the next start would meet, too
  echo "Job $job is requeued."
  scontrol requeue "$job" && exit 0
fi
exit $status
