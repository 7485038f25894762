#!/bin/sh
# Fine-tunes a classifier on all GPUs of this machine, or on all cores. See launch.sh for several machines.
#   bash scripts/finetune.sh --config configs/mae/finetune_vit_base.yaml --data_path DIR --finetune FILE --output_dir OUT
set -eu
. "$(dirname "$0")/launch.sh"
launch main_finetune.py "$@"
