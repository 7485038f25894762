#!/usr/bin/env bash
# Compares one MAE ViT-B/16 pre-training step (224 px, mask ratio 0.75, normalized pixel targets, fp32, global
# batch 16, AdamW) of Hugging Face's ViTMAEForPreTraining on PyTorch with plsc_mae on the same CPU cores:
# plsc_mae once as one process and once as one process per core, gradient exchange included.
#
#   bash scripts/bench/compare_pytorch.sh [--rounds 3] [--steps 6] [--json FILE]
#
# TORCH_PYTHON   interpreter with torch and transformers; default: .venv-torch, made on the first run (with
#                PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu pip takes the smaller build without CUDA)
# PADDLE_PYTHON  interpreter with Paddle; default: .venv/bin/python
#
# The programs run in turns. The load average before a turn includes earlier turns; only the first one shows the other
# load of the machine. Linux only.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh SCRIPT`
set +o posix                                      # where sh is bash
set -euo pipefail

readonly batch_size=16
rounds=3
steps=6
json=""

usage() { sed -n 's/^# \{0,1\}//; 2,13p' "$0"; }
die() { echo "compare_pytorch.sh: $*" >&2; exit 2; }

while (($#)); do
  case $1 in
    --rounds | --steps)
      [[ ${2-} =~ ^[1-9][0-9]*$ ]] || die "$1 takes a positive number, got '${2-}'"
      printf -v "${1#--}" %s "$2"
      ;;
    --json)
      [[ -n ${2-} ]] || die "--json takes a file name"
      json=$(realpath -m -- "$2") # before the cd below
      ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown argument '$1'; see --help" ;;
  esac
  shift 2
done

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# Paddle's launcher takes its device list from CUDA_VISIBLE_DEVICES. The other two would slow down one side
# only, and nproc obeys OMP_NUM_THREADS.
unset CUDA_VISIBLE_DEVICES OMP_NUM_THREADS MKL_NUM_THREADS

paddle_python=${PADDLE_PYTHON:-.venv/bin/python}
command -v "$paddle_python" >/dev/null ||
  die "no Python at '$paddle_python': install plsc_mae there, or name another interpreter in PADDLE_PYTHON"

if [[ -z ${TORCH_PYTHON-} ]]; then
  TORCH_PYTHON=.venv-torch/bin/python
  [[ -x $TORCH_PYTHON ]] || python3 -m venv .venv-torch
  # Takes seconds if everything is installed, and repairs an interrupted installation.
  "$TORCH_PYTHON" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers numpy
fi
command -v "$TORCH_PYTHON" >/dev/null || die "no Python at '$TORCH_PYTHON', which TORCH_PYTHON names"

processes=$(nproc)
((processes <= batch_size)) || processes=$batch_size
while ((batch_size % processes)); do ((processes -= 1)); done # the same global batch for all
logs=$(mktemp -d)

run_contestant() { # NAME LAUNCHER_LOG_DIR
  local step=(scripts/bench/step.py --model mae_vit_base_patch16 --norm_pix_loss --max_train_step "$steps")
  case $1 in
    pytorch)
      "$TORCH_PYTHON" scripts/bench/vitmae_pytorch.py --batch_size "$batch_size" --steps "$steps"
      ;;
    plsc_mae)
      "$paddle_python" "${step[@]}" --batch_size "$batch_size"
      ;;
    "plsc_mae x$processes")
      "$paddle_python" -m paddle.distributed.launch --nproc_per_node "$processes" --log_dir "$2" \
        "${step[@]}" --batch_size $((batch_size / processes))
      ;;
  esac
}

take_turn() { # ROUND NAME
  local log="$logs/$1-${2// /_}.log" load
  load=$(cut -d ' ' -f 1-3 /proc/loadavg)
  echo "round $1/$rounds  $2  (load average $load)"
  # The report reads this header line to identify the program of the log.
  printf '{"contestant": "%s", "round": %d, "load_average": "%s"}\n' "$2" "$1" "$load" >"$log"
  if ! run_contestant "$2" "${log%.log}" >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "$2 failed in round $1; whole log: $log"
  fi
}

contestants=(pytorch plsc_mae "plsc_mae x$processes")
for ((round = 0; round < rounds; round++)); do
  for ((turn = 0; turn < ${#contestants[@]}; turn++)); do
    # Rotated, so that no program always runs first, on an idle machine.
    take_turn $((round + 1)) "${contestants[(round + turn) % ${#contestants[@]}]}"
  done
done

"$TORCH_PYTHON" scripts/bench/compare_report.py ${json:+--json "$json"} "$logs"/*.log
rm -r "$logs"
