#!/bin/sh
# Measures the k-NN accuracy of a pre-trained encoder; computes features on all GPUs of this machine, or on all cores.
#   bash scripts/knn.sh --data_path DIR --finetune FILE --save_path OUT
set -eu
. "$(dirname "$0")/launch.sh"
launch plsc_mae/__main__.py knn "$@"
