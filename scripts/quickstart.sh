#!/bin/sh
# Installs the suite and draws two kinds of demo data. Trains a small MAE on objects and shows how it redraws hidden parts.
# Meanwhile trains a small MAE and a small CAE on shapes, in the background, and prints a table of k-NN and linear
# accuracies, with random weights and raw pixels as baselines. The last line names the report of the first MAE.
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

# Three trainings of one thread each use two cores better than one after the other with two threads: these networks are
# too small for a second thread, which only waits. Interrupting the script stops them; each saves a checkpoint first.
export MKL_NUM_THREADS=1
echo "in the background: MAE and CAE on shapes, for the table; see $out/mae.log and $out/cae.log"
"$plsc_mae" pretrain --config configs/demo/mae.yaml --data_path $out/shapes --output_dir $out/mae \
    --auto_resume > $out/mae.log 2>&1 &
mae=$!
"$plsc_mae" pretrain --config configs/demo/cae.yaml --data_path $out/shapes --output_dir $out/cae \
    --auto_resume > $out/cae.log 2>&1 &
cae=$!
trap 'kill $mae $cae 2> /dev/null' EXIT
trap 'exit 130' INT TERM
finish() { wait "$1" || { tail -5 "$2"; exit 1; }; } # PROCESS LOG

"$plsc_mae" pretrain --config configs/demo/mae_objects.yaml --data_path $out/objects --output_dir $out/mae_objects \
    --auto_resume
"$plsc_mae" plot $out/mae_objects
"$plsc_mae" reconstruct --model_path "$(newest mae_objects)" --img_path $out/objects/val \
    --save_path $out/panels --max_images 10

finish $mae $out/mae.log
finish $cae $out/cae.log
trap - EXIT
unset MKL_NUM_THREADS
"$plsc_mae" plot $out/mae
"$plsc_mae" plot $out/cae
"$plsc_mae" compare --model_path "$(newest mae)" "$(newest cae)" --data_path $out/shapes --crop_pct 1 --pixels 32 \
    --random_weights --seeds 0 1 2 --save_path $out/table.md
"$plsc_mae" report $out/mae_objects --tables $out/table.md --save_path $out/report.html
