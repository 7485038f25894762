#!/bin/sh
# Installs the suite, draws demo data, trains a small MAE and a small CAE for some minutes each on the CPU, and draws
# reconstructions. Then prints a table of k-NN and linear accuracies, with random weights and raw pixels as baselines,
# and writes a report of the MAE's run: is it learning?
# A second run skips finished steps. All files are in quickstart/ and .venv/.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
plsc_mae=.venv/bin/plsc-mae
out=quickstart

"$plsc_mae" demo-data $out/data
# One process per core is faster than one process on all cores: Paddle's CPU kernels other than matrix products use one
# thread. On a machine without a GPU the launcher fails if CUDA_VISIBLE_DEVICES is set.
launch() { env -u CUDA_VISIBLE_DEVICES .venv/bin/python -m paddle.distributed.launch --nproc_per_node 2 "$@"; }
launch --log_dir $out/workers/mae main_pretrain.py \
    --config configs/demo/mae.yaml --data_path $out/data --output_dir $out/mae --auto_resume
launch --log_dir $out/workers/cae main_pretrain.py \
    --config configs/demo/cae.yaml --data_path $out/data --output_dir $out/cae --auto_resume

"$plsc_mae" plot $out/mae
"$plsc_mae" plot $out/cae
mae="$(ls -t $out/mae/checkpoint-*.pd | head -1)"
cae="$(ls -t $out/cae/checkpoint-*.pd | head -1)"
"$plsc_mae" reconstruct --model_path "$mae" --img_path $out/data --save_path $out/panels --max_images 10
"$plsc_mae" compare --model_path "$mae" "$cae" --data_path $out/data --crop_pct 1 --pixels 32 --random_weights \
    --seeds 0 1 2 --save_path $out/table.md
"$plsc_mae" report $out/mae --tables $out/table.md --save_path $out/report.html
