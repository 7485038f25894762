# Sourced by pretrain.sh, finetune.sh, linprobe.sh and knn.sh, in any POSIX shell. `launch PROGRAM OPTION...` starts one
# process per GPU of this machine, or per core without a GPU.
#   NPROC_PER_NODE   another number of processes
#   LOG_DIR          folder of the launcher's logs, workerlog.N of each process [log]
#   NNODES, MASTER   number of machines and IP:PORT of the first; start the same command on each
#   PYTHON           interpreter with Paddle [.venv/bin/python if it is there, else python]

launch() {
    root="$(cd "$(dirname "$0")/.." && pwd)"
    python="${PYTHON:-$root/.venv/bin/python}"
    command -v "$python" >/dev/null || python=python
    if command -v nvidia-smi >/dev/null; then
        count=$(nvidia-smi --list-gpus | wc -l)
    else
        count=$(getconf _NPROCESSORS_ONLN)
        unset CUDA_VISIBLE_DEVICES # the launcher would count GPUs by it
    fi
    count="${NPROC_PER_NODE:-$count}"
    program="$root/$1"
    shift
    if [ "${NNODES:-1}" = 1 ] && [ "$count" = 1 ]; then
        exec "$python" "$program" "$@"
    fi
    exec "$python" -m paddle.distributed.launch --nproc_per_node "$count" ${NNODES:+--nnodes "$NNODES"} \
        ${MASTER:+--master "$MASTER"} ${LOG_DIR:+--log_dir "$LOG_DIR"} "$program" "$@"
}
