#!/usr/bin/env bash
# Measures the k-NN accuracy of a pre-trained encoder; computes features on all GPUs of this machine, or on all cores.
#   bash scripts/knn.sh --data_path DIR --finetune FILE --save_path OUT
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch plsc_mae/__main__.py knn "$@"
