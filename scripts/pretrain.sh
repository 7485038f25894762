#!/bin/sh
# Pre-trains an encoder on all GPUs of this machine, or on all cores. See launch.sh for several machines.
#   bash scripts/pretrain.sh --config configs/mae/pretrain_vit_base_1600e.yaml --data_path DIR --output_dir OUT
set -eu
. "$(dirname "$0")/launch.sh"
launch main_pretrain.py "$@"
