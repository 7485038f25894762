#!/bin/sh
# Installs the suite and draws two kinds of demo data. Trains a small MAE on drawn objects and shows how it redraws hidden
# parts. Trains a small MAE and a small CAE on shapes and prints a table of k-NN and linear accuracies, with random
# weights and raw pixels as baselines. Each training takes some minutes on the CPU. The last line names the report.
# A second run skips finished steps. All files are in quickstart/ and .venv/.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
plsc_mae=.venv/bin/plsc-mae
out=quickstart

"$plsc_mae" demo-data $out/objects --kind objects
"$plsc_mae" demo-data $out/shapes
# One process per core is faster than one process on all cores: Paddle's CPU kernels other than matrix products use one
# thread. On a machine without a GPU the launcher fails if CUDA_VISIBLE_DEVICES is set.
launch() { env -u CUDA_VISIBLE_DEVICES .venv/bin/python -m paddle.distributed.launch --nproc_per_node 2 "$@"; }
newest() { ls -t "$out/$1"/checkpoint-*.pd | head -1; }

launch --log_dir $out/workers/mae_objects main_pretrain.py \
    --config configs/demo/mae_objects.yaml --data_path $out/objects --output_dir $out/mae_objects --auto_resume
"$plsc_mae" reconstruct --model_path "$(newest mae_objects)" --img_path $out/objects/val \
    --save_path $out/panels --max_images 10

launch --log_dir $out/workers/mae main_pretrain.py \
    --config configs/demo/mae.yaml --data_path $out/shapes --output_dir $out/mae --auto_resume
launch --log_dir $out/workers/cae main_pretrain.py \
    --config configs/demo/cae.yaml --data_path $out/shapes --output_dir $out/cae --auto_resume
"$plsc_mae" plot $out/mae
"$plsc_mae" plot $out/cae
"$plsc_mae" compare --model_path "$(newest mae)" "$(newest cae)" --data_path $out/shapes --crop_pct 1 --pixels 32 \
    --random_weights --seeds 0 1 2 --save_path $out/table.md

"$plsc_mae" plot $out/mae_objects
"$plsc_mae" report $out/mae_objects --tables $out/table.md --save_path $out/report.html
