#!/bin/sh
# Installs the suite and draws two kinds of demo data. Trains a small MAE and a small CAE on shapes and, in the background,
# a small MAE on objects. Shows how the latter redraws hidden parts, and prints a table of k-NN and linear accuracies on
# shapes, with random weights and raw pixels as baselines. The last line names the report of the MAE on objects.
# A second run skips finished steps and continues interrupted trainings. All files are in quickstart/ and .venv/.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
plsc_mae=.venv/bin/plsc-mae
out=quickstart

"$plsc_mae" demo-data $out/objects --kind objects
"$plsc_mae" demo-data $out/shapes
newest() { ls -t "$out/$1"/checkpoint-*.pd | head -1; }

# Two trainings at a time, each on one thread: these networks are too small for a second thread, which only waits.
# Interrupting the script stops both; each saves a checkpoint first.
export MKL_NUM_THREADS=1
echo "in the background: MAE on objects, for the pictures; see $out/mae_objects.log"
"$plsc_mae" pretrain --config configs/demo/mae_objects.yaml --data_path $out/objects --output_dir $out/mae_objects \
    --auto_resume > $out/mae_objects.log 2>&1 &
background=$!
trap 'kill $background 2> /dev/null' EXIT
trap 'exit 130' INT TERM
"$plsc_mae" pretrain --config configs/demo/mae.yaml --data_path $out/shapes --output_dir $out/mae --auto_resume
"$plsc_mae" pretrain --config configs/demo/cae.yaml --data_path $out/shapes --output_dir $out/cae --auto_resume
wait $background || { tail -5 $out/mae_objects.log; exit 1; }
trap - EXIT
unset MKL_NUM_THREADS

"$plsc_mae" plot $out/mae
"$plsc_mae" plot $out/cae
"$plsc_mae" plot $out/mae_objects
"$plsc_mae" reconstruct --model_path "$(newest mae_objects)" --img_path $out/objects/val \
    --save_path $out/panels --max_images 10
"$plsc_mae" compare --model_path "$(newest mae)" "$(newest cae)" --data_path $out/shapes --crop_pct 1 --pixels 32 \
    --random_weights --save_path $out/table.md
"$plsc_mae" report $out/mae_objects --tables $out/table.md --save_path $out/report.html
