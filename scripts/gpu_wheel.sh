#!/usr/bin/env bash
# Runs every command under Paddle's GPU wheel (2.6.2) on a machine without a GPU, as on the login node of a cluster: on
# demo data, alone and in two processes. Prints a table; the exit code is 1 if a command failed. Downloads and unpacks
# 3.5 GB; the commands take some minutes on 2 CPU cores.
#   bash scripts/gpu_wheel.sh [FOLDER]    [gpu-wheel]; PYTHON=... for an environment of your own
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh SCRIPT`
set +o posix                                      # where sh is bash
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    . scripts/environment.sh
    make_environment .venv-gpu-wheel -e . paddlepaddle-gpu==2.6.2 'numpy<2'
    PYTHON=$PWD/.venv-gpu-wheel/bin/python
fi
out="${1:-gpu-wheel}"
if [ -e "$out" ]; then
    echo "$out exists; name another folder: bash scripts/gpu_wheel.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$out/output"

table=()
ran="|"
failed=0
# check CODE EXPECTED WORD...: runs `plsc-mae WORD...`. CODE is the exit code, or several with | between them. EXPECTED is
# @ and a file or folder that must be there afterwards, or a regular expression that a line of the output must match.
# $limit is a command that ends a server.
check() {
    local code=$1 expected=$2 log shown start=$SECONDS got=0 result=ok
    shift 2
    log="$out/output/${#table[@]}.txt"
    echo "plsc-mae $*"
    ${limit:-} "$PYTHON" -m plsc_mae "$@" >"$log" 2>&1 || got=$?
    if [[ "|$code|" != *"|$got|"* ]]; then
        result="exit code $got instead of $code"
    elif grep -q "Traceback (most recent call last)" "$log"; then
        result="a traceback"
    elif [[ $expected == @* ]]; then
        [ -s "${expected#@}" ] || result="no ${expected#@}"
    elif ! grep -Eq -- "$expected" "$log"; then
        result="no line matches '$expected'"
    fi
    if [ "$result" != ok ]; then
        failed=1
        tail -n 20 "$log" >&2
        result="FAILED: $result, see $log"
    fi
    ran+="$1|$1 ${2:-}|" # commands have one word or two
    shown=${*/launch --nproc_per_node 2 --log_dir $out\/workers\/${#table[@]}/2 processes:}
    table+=("$(printf '%4d s  %s  %.90s' $((SECONDS - start)) "$result" "${shown//$out\//}")")
}

# two CODE EXPECTED WORD...: the same check of the command in two processes.
two() {
    local code=$1 expected=$2
    shift 2
    check "$code" "$expected" launch --nproc_per_node 2 --log_dir "$out/workers/${#table[@]}" "$@"
    ran+="$1|"
}

data="$out/data"
encoder="--input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 4"
mae="--model mae_vit_tiny_patch16 $encoder --decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 4"
cae="--model cae_tiny_patch16_224_8k_vocab $encoder --decoder_embed_dim 24 --regressor_depth 1
    --num_decoder_self_attention 1 --decoder_num_heads 4 --num_mask_patches 8 --min_mask_patches_per_block 2
    --discrete_vae_weight_path $out/tokenizer --decoder_num_classes 32"
simmim="--model pretrain_simmim_tiny_patch16_224 $encoder --mask_patch_size 16"
run="--data_path $data --epochs 2 --warmup_epochs 1 --batch_size 16 --accum_iter 1 --num_workers 1"
classify="--model vit_base_patch16 $encoder --finetune $out/mae/checkpoint-1.pd"
images="--data_path $data --crop_pct 1 --num_workers 1"
file="$out/mae/checkpoint-1.pd"

check 0 '^  doctor ' --help
check 0 'GPU wheel is installed but there is no GPU' doctor
two 0 'no problems found|GPU wheel' doctor --distributed
check 3 "@$out/gpu-report.json" doctor --gpu --report "$out/gpu-report.json"
check 0 "@$data/train" demo-data "$data" --image_size 32 --train_per_class 8 --val_per_class 3
check 0 "@$out/tokenizer/encoder_weight.pd" random-tokenizer "$out/tokenizer" --n_hid 8 --vocab_size 32
check 0 'GiB' plan pretrain $mae --batch_size 16
check 0 'GiB' plan finetune --model vit_base_patch16 $encoder
check 0 'GiB' plan linprobe --model vit_base_patch16 $encoder

check 0 "@$file" pretrain $mae $run --output_dir "$out/mae"
check 0 "@$out/cae/checkpoint-1.pd" pretrain $cae $run --output_dir "$out/cae"
check 0 "@$out/simmim/checkpoint-1.pd" pretrain $simmim $run --output_dir "$out/simmim"
check 0 "@$out/mae/checkpoint-2.pd" pretrain $mae $run --epochs 3 --resume "$file" --output_dir "$out/mae"
two 0 "@$out/mae2/checkpoint-1.pd" pretrain $mae $run --output_dir "$out/mae2"
two 0 "@$out/cae2/checkpoint-1.pd" pretrain $cae $run --output_dir "$out/cae2"
two 0 "@$out/tensor/checkpoint-1.pd" pretrain $mae $run --tensor_parallel 2 --output_dir "$out/tensor"
check 0 "@$out/mae/loss.png" plot "$out/mae"
check 0 'images/s' bench step $mae --batch_size 8 --max_train_step 3
check 0 'images/s' bench data $mae $run

check 0 "@$out/mae/report.html" report "$out/mae" --img_path "$data"
check 0 "@$out/runs.html" runs "$out/mae" "$out/mae2" --save_path "$out/runs.html"
limit="timeout --signal INT 30" check 124 ' runs in .*http://' board "$out"

check 0 "@$out/panels" reconstruct --model_path "$file" --img_path "$data" --save_path "$out/panels" --max_images 2
check 0 "@$out/attention" explain --model_path "$file" --img_path "$data" --save_path "$out/attention" --max_images 2
check 0 "@$out/features.npz" extract --model_path "$file" $images --save_path "$out/features.npz"
check 0 'top-1' knn --model_path "$file" $images --nb_knn 10
two 0 'top-1' knn --model_path "$file" $images --nb_knn 10
check 0 'top-1' fewshot --model_path "$file" $images --shots 1 2 --label_seeds 0 1
check 0 "@$out/stats.json" stats "$data" --save_path "$out/stats.json"
check 0 "@$out/packed" prepare-data "$data" "$out/packed" --short 16
check 0 "@$out/from-tar/checkpoint-1.pd" pretrain $mae $run --data_path "$out/packed" --output_dir "$out/from-tar"
check 0 "@$out/masked/masks" demo-data "$out/masked" --masks --image_size 32 --train_per_class 8 --val_per_class 3
check 0 "@$out/segmentation/results.json" segprobe --model_path "$file" --data_path "$out/masked" --save_path "$out/segmentation"
check 0 "@$out/table.md" compare --model_path "$file" "$out/cae/checkpoint-1.pd" $images --save_path "$out/table.md"

check 0 "@$out/finetune/checkpoint-1.pd" finetune $classify $run --mixup 0.8 --model_ema --output_dir "$out/finetune"
check 0 'Acc@1' finetune $classify $run --eval --resume "$out/finetune/checkpoint-1.pd"
two 0 "@$out/finetune2/checkpoint-1.pd" finetune $classify $run --dist_eval --output_dir "$out/finetune2"
check 0 "@$out/linprobe/checkpoint-1.pd" linprobe $classify $run --output_dir "$out/linprobe"
two 0 "@$out/pipeline/checkpoint-1.pd" linprobe $classify $run --pipeline_parallel 2 --output_dir "$out/pipeline"
check 0 "@$out/classes.csv" predict --model_path "$out/finetune/checkpoint-1.pd" --img_path "$data" \
    --num_workers 1 --save_path "$out/classes.csv"
check 0 "@$out/export/model.pdmodel" export --target inference --model_path "$out/finetune/checkpoint-1.pd" \
    --save_path "$out/export"

check 0 'finetune' weights inspect "$file"
check 0 "@$out/mae.pth" weights convert "$file" "$out/mae.pth" --dialect facebook
check 0 '^the same' weights diff "$file" "$out/mae.pth" --num_heads 4 --decoder_num_heads 4
check 0 'facebook' weights list
check 0 'pretrain' configs
"$PYTHON" -m http.server --bind 127.0.0.1 --directory "$out" 8765 >"$out/server.txt" 2>&1 &
server=$!
trap 'kill $server' EXIT
check 0 "@$out/fetched/mae.pth" weights fetch http://127.0.0.1:8765/mae.pth --output_dir "$out/fetched"
check 0 'all within tolerance' parity --checkpoint "$file"

# What a GPU is needed for is refused in a sentence.
for command in "pretrain $mae $run --output_dir $out/refused" "finetune $classify $run --output_dir $out/refused" \
    "linprobe $classify $run --output_dir $out/refused" "bench step $mae" "bench data $mae $run" "parity" \
    "reconstruct --model_path $file --img_path $data" "explain --model_path $file --img_path $data" \
    "segprobe --model_path $file --data_path $out/masked" \
    "extract --model_path $file $images --save_path $out/x.npz" "knn --model_path $file $images" \
    "fewshot --model_path $file $images" \
    "compare --model_path $file $images" "predict --model_path $out/finetune/checkpoint-1.pd --img_path $data"; do
    check 2 'error: --device gpu: no GPU is visible to Paddle' $command --device gpu
done
# The launcher's own exit code depends on the process that it ended: 2, or 241 after SIGTERM.
two '2|241' 'error: --device gpu: no GPU is visible to Paddle' pretrain $mae $run --device gpu --output_dir "$out/refused"
check 2 'error: --devices 0,1 names GPUs' launch --devices 0,1 pretrain $mae $run

while read -r command; do
    if [[ $ran != *"|$command|"* ]]; then
        failed=1
        table+=("        FAILED: not tried  $command")
    fi
done < <("$PYTHON" -m plsc_mae --help | sed -n 's/^  \([a-z-]*\( [a-z]*\)\?\)  .*/\1/p')

printf '\n'
printf '%s\n' "${table[@]}"
exit $failed
