#!/usr/bin/env bash
# From nothing to a table: environment, demo data, a small MAE and a small CAE trained for some minutes each on the CPU,
# reconstructions, and how well their features classify beside those of random weights and raw pixels.
# A second run skips what is done. Everything lands in quickstart/ and .venv/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
plsc_mae=.venv/bin/plsc-mae out=quickstart

"$plsc_mae" demo-data $out/data
# One process per core is faster than one process on all cores: Paddle's CPU kernels other than matrix products use one
# thread. The launcher stumbles over CUDA_VISIBLE_DEVICES on a machine without a GPU.
launch() { env -u CUDA_VISIBLE_DEVICES .venv/bin/python -m paddle.distributed.launch --nproc_per_node 2 "$@"; }
launch --log_dir $out/workers/mae main_pretrain.py \
    --config configs/demo/mae.yaml --data_path $out/data --output_dir $out/mae --auto_resume
launch --log_dir $out/workers/cae main_pretrain.py \
    --config configs/demo/cae.yaml --data_path $out/data --output_dir $out/cae --auto_resume

"$plsc_mae" plot $out/mae
"$plsc_mae" plot $out/cae
mae="$(ls -t $out/mae/checkpoint-*.pd | head -1)" cae="$(ls -t $out/cae/checkpoint-*.pd | head -1)"
"$plsc_mae" reconstruct --model_path "$mae" --img_path $out/data --save_path $out/panels --max_images 10
"$plsc_mae" compare --model_path "$mae" "$cae" --data_path $out/data --crop_pct 1 --pixels 32 --random_weights \
    --seeds 0 1 2 --save_path $out/table.md
