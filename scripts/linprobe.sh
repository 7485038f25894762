#!/bin/sh
# Trains a linear probe on all GPUs of this machine, or on all cores. See launch.sh for several machines.
#   bash scripts/linprobe.sh --config configs/mae/linprobe_vit_base.yaml --data_path DIR --finetune FILE --output_dir OUT
set -eu
. "$(dirname "$0")/launch.sh"
launch main_linprobe.py "$@"
